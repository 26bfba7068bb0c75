//! The log: lines on standard error, which nothing waits for.
//!
//! Starts the thread that writes them, tells tracing where they go, and has panics and last words logged like everything
//! else. Invariant: no call here blocks for longer than [`FLUSH_PATIENCE`], and only those at the end of a process block at
//! all.

mod format;
mod queue;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use serde_json::Value;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use self::format::{JsonLines, Style};
use self::queue::{Queue, Share};
use super::Counter;
use crate::model::NodeId;

/// The target of access lines, which have a share of the queue for themselves.
pub const ACCESS_LOG: &str = "shoal::http::access";
/// How long the end of a process waits for the log.
const FLUSH_PATIENCE: Duration = Duration::from_millis(500);

static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();
/// Set when logging starts.
static STYLE: OnceLock<Style> = OnceLock::new();
static DROPPED: LazyLock<Counter> = LazyLock::new(|| {
    Counter::new("shoal_log_lines_dropped_total", "Log lines of this process that could not be written.")
        .expect("a valid name")
});

/// The logs' shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The thread that writes to standard error. What it has not written when this is dropped, it may write for a moment more.
#[derive(Debug)]
pub struct Logs(());

impl Logs {
    /// Starts the thread; once in a process.
    ///
    /// # Errors
    /// When the system gives no thread, or no other handle of standard error.
    pub fn start() -> io::Result<Logs> {
        // A handle of its own: std's has a lock, which whoever writes to a pipe that nobody reads holds for ever.
        let out = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let tell = |lines: u64, reason: &str| {
            let fields = [("lines", lines.into()), ("reason", reason.into())];
            styled(Level::WARN, "log lines could not be written", &fields)
        };
        let queue = Queue::start(out, DROPPED.clone(), tell)?;
        // Fails when it was started before, which is a caller's fault that does no harm.
        let _ = QUEUE.set(queue);
        Ok(Logs(()))
    }

    /// Starts logging for the whole process, panics too.
    ///
    /// # Errors
    /// When `filter` is not a filter that tracing understands, or logging was started before.
    pub fn begin(&self, format: Option<LogFormat>, filter: &str, node_id: &NodeId) -> Result<(), String> {
        let filter = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
        let is_terminal = io::stderr().is_terminal();
        let format = format.unwrap_or(if is_terminal { LogFormat::Text } else { LogFormat::Json });
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Lines);
        let builder = builder.log_internal_errors(false);
        let (style, started) = match format {
            LogFormat::Text => (Style::Text, builder.with_ansi(is_terminal).with_target(false).try_init()),
            LogFormat::Json => {
                let lines = JsonLines { node_id: node_id.to_string() };
                (Style::Json(lines.clone()), builder.event_format(lines).try_init())
            }
        };
        started.map_err(|error| error.to_string())?;
        // Fails when it was started before, which the line above excludes.
        let _ = STYLE.set(style);
        std::panic::set_hook(Box::new(log_panic));
        Ok(())
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        flush();
    }
}

/// Logs why this process is about to end, whatever the filter, and waits for a moment until it is written.
pub fn last_words(message: &str) {
    say(message, &[]);
    flush();
}

/// How many lines this process could not write.
pub(super) fn dropped() -> &'static Counter {
    &DROPPED
}

fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FLUSH_PATIENCE);
    }
}

fn say(message: &str, fields: &[(&str, Value)]) {
    let line = styled(Level::ERROR, message, fields);
    match QUEUE.get() {
        Some(queue) => queue.push(Share::Node, line.as_bytes()),
        // Without the thread there is nowhere to put it, and nobody to tell if it fails.
        None => drop(io::stderr().write_all(line.as_bytes())),
    }
}

/// A line in the log's shape, or the one of commands as long as there is no log.
fn styled(level: Level, message: &str, fields: &[(&str, Value)]) -> String {
    match STYLE.get() {
        Some(style) => style.line(level, message, fields),
        None => format!("shoal: {message}\n"),
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let reason = payload.downcast_ref::<&str>().copied();
    let reason = reason.or(payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("?");
    let thread = std::thread::current().name().unwrap_or("?").to_string();
    let location = panic.location().map(ToString::to_string);
    let mut fields = vec![("thread", thread.into()), ("location", location.into())];
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        fields.push(("backtrace", trace.to_string().into()));
    }
    say(&format!("panicked: {reason}"), &fields);
}

/// Where tracing puts its lines.
struct Lines;

/// Takes one line.
struct Line(Share);

impl MakeWriter<'_> for Lines {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line(Share::Node)
    }

    fn make_writer_for(&self, meta: &Metadata<'_>) -> Line {
        Line(if meta.target() == ACCESS_LOG { Share::Access } else { Share::Node })
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(queue) = QUEUE.get() {
            queue.push(self.0, line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
