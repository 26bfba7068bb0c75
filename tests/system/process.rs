//! One `shoal` process: what it writes, in memory, signals, and its end.
//!
//! Invariant: a process does not outlive its handle, not even one that is stopped.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
pub(crate) use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use serde_json::Value;

/// For steps that the tests have to wait for but say nothing about.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Whether `condition` came true in time. Asked often, so that a deadline means what it says.
pub(crate) fn poll(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if started.elapsed() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A running `shoal`, or one that has ended.
pub(crate) struct Process {
    child: Child,
    output: Log,
    log: Log,
}

impl Process {
    pub(crate) fn spawn<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Process {
        Process::spawn_with(&[], arguments)
    }

    /// The same, with these variables.
    pub(crate) fn spawn_with<S: AsRef<std::ffi::OsStr>>(
        variables: &[(&str, &str)],
        arguments: impl IntoIterator<Item = S>,
    ) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
        command.args(arguments).envs(variables.iter().copied());
        Process::of(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// Starts what `command` says; its output and log are followed where they are piped.
    pub(crate) fn of(command: &mut Command) -> Process {
        let mut child = command.stdin(Stdio::null()).spawn().expect("the shoal binary starts");
        let (output, log) = (Log::default(), Log::default());
        output.follow(child.stdout.take());
        log.follow(child.stderr.take());
        Process { child, output, log }
    }

    pub(crate) fn output(&self) -> &Log {
        &self.output
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process is there to be signalled");
    }

    /// Kills it, unless it has ended by itself.
    pub(crate) fn kill(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for its end, and for everything it wrote.
    pub(crate) fn wait(&mut self, patience: Duration) -> ExitStatus {
        let ended = poll(patience, || {
            self.exit_status().is_some() && self.log.has_ended() && self.output.has_ended()
        });
        assert!(ended, "the process still runs after {patience:?}; its log ends\n{}", self.log.tail(20));
        self.exit_status().expect("it has ended")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The lines that a process has written so far.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<(Vec<String>, bool)>>);

impl Log {
    fn follow(&self, stream: Option<impl std::io::Read + Send + 'static>) {
        let log = self.clone();
        let Some(stream) = stream else {
            log.0.lock().1 = true;
            return;
        };
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                log.0.lock().0.push(line);
            }
            log.0.lock().1 = true;
        });
    }

    fn has_ended(&self) -> bool {
        self.0.lock().1
    }

    pub(crate) fn text(&self) -> String {
        self.tail(usize::MAX)
    }

    /// Whether it says that, now or soon: a thread of its own writes the log, so that a line may come after an answer.
    pub(crate) fn says(&self, text: &str) -> bool {
        poll(PATIENCE, || self.text().contains(text))
    }

    pub(crate) fn tail(&self, lines: usize) -> String {
        let log = self.0.lock();
        log.0[log.0.len().saturating_sub(lines)..].join("\n")
    }

    /// Where a node says that it listens.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.with_message("the node starts").first()?["address"].as_str()?.parse().ok()
    }

    /// The lines that are JSON with this message.
    pub(crate) fn with_message(&self, message: &str) -> Vec<Value> {
        let log = self.0.lock();
        let parsed = log.0.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        parsed.filter(|line| line["message"] == message).collect()
    }
}

/// How a command came out.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) output: String,
    pub(crate) errors: String,
}

/// Runs `shoal` to its end.
pub(crate) fn run(arguments: &[&str]) -> Ended {
    let mut process = Process::spawn(arguments);
    let code = process.wait(PATIENCE).code().expect("no signal ends it");
    Ended { code, output: process.output.text(), errors: process.log.text() }
}
