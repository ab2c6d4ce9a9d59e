use std::process::ExitCode;

fn main() -> ExitCode {
    // Before any thread exists: this program is also the helper that builds its sandboxes.
    janebot::host::sandbox::maybe_run_init();
    janebot::cli::run(std::env::args_os())
}
