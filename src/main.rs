use std::process::ExitCode;

fn main() -> ExitCode {
    janebot::cli::run(std::env::args_os())
}
