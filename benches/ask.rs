//! `janebot ask` end to end on the embedded host, against running the same script directly.
//!
//! Prints a table; every exit status is checked. `cargo bench --bench ask`

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 40;
const SCRIPT: &str = "echo hi";

fn janebot(data: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_janebot"));
    command.args(args).env_clear().env("DATA_DIR", data).env("HOME", data);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end and says how long that took.
#[expect(clippy::disallowed_methods, reason = "a program's run is timed from outside, by the machine's own clock")]
fn time(mut command: Command) -> Duration {
    let began = Instant::now();
    let output = command.output().expect("the program starts");
    let took = began.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"hi\n");
    took
}

fn figures(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("{name:<52} {:>8.1} {:>8.1} {:>8.1}", at(0.0), at(0.5), at(0.9));
}

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let first = time(janebot(folder.path(), &["ask", SCRIPT]));
    let (mut direct, mut asked, mut chatted) = (Vec::new(), Vec::new(), Vec::new());
    // In turns, so that a machine that changes its speed changes it for both.
    for _ in 0..ROUNDS {
        let mut bash = Command::new("bash");
        bash.args(["-c", SCRIPT]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        direct.push(time(bash));
        asked.push(time(janebot(folder.path(), &["ask", SCRIPT])));
    }
    for _ in 0..5 {
        let mut chat = janebot(folder.path(), &["chat"]);
        let mut child = chat.stdin(Stdio::piped()).spawn().expect("the program starts");
        let mut input = child.stdin.take().expect("it is piped");
        let lines = format!("{SCRIPT}\n").repeat(20);
        std::io::Write::write_all(&mut input, lines.as_bytes()).expect("it reads");
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // `✓ shell · 34 ms (wait 0 ms, …`
        let times = said.lines().filter_map(|line| line.strip_prefix("✓ shell · ")?.split_once(" ms")?.0.parse().ok());
        chatted.extend(times.map(Duration::from_millis));
    }
    println!("{:<52} {:>8} {:>8} {:>8}", format!("ms, {ROUNDS} rounds in turn"), "min", "p50", "p90");
    println!("{:<52} {:>8.1}", "the first ask, machines built", first.as_secs_f64() * 1e3);
    figures(&format!("bash -c '{SCRIPT}'"), direct);
    figures(&format!("janebot ask '{SCRIPT}', machines there"), asked);
    if !chatted.is_empty() {
        figures("a job in janebot chat", chatted);
    }
}
