fn main() {
    // Before any thread exists: this program is also the helper that builds its sandboxes.
    janebot::host::sandbox::maybe_run_init();
}
