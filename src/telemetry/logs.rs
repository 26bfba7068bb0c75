//! Logs: their shapes, and how to keep one kind of line from filling them.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::hash::Hash;
use std::io::{self, IsTerminal};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::model::NodeId;

/// Lets one line a minute through of each kind, where strangers could bring about any number. There must be few kinds.
#[derive(Debug)]
pub struct Seldom<K>(Mutex<HashMap<K, Instant>>);

/// Between two lines of a kind.
const PAUSE: Duration = Duration::from_secs(60);

impl<K> Default for Seldom<K> {
    fn default() -> Seldom<K> {
        Seldom(Mutex::default())
    }
}

impl<K: Eq + Hash> Seldom<K> {
    /// Whether it is time for the next line of this kind; then it counts as written.
    pub fn is_due(&self, kind: K) -> bool {
        let mut written = self.0.lock();
        let due = written.get(&kind).is_none_or(|at| at.elapsed() >= PAUSE);
        if due {
            written.insert(kind, Instant::now());
        }
        due
    }
}

/// The logs' shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error for the whole process.
///
/// # Errors
/// When `filter` is not a filter that tracing understands, or logging was started before.
pub fn start_logging(format: Option<LogFormat>, filter: &str, node_id: &NodeId) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
    let json = format.unwrap_or(if io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json });
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match json {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => builder.event_format(JsonLines { node_id: node_id.to_string() }).try_init(),
    };
    started.map_err(|error| error.to_string())
}

/// One JSON object a line, with the node's name at the top level as the interface promises.
struct JsonLines {
    node_id: String,
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Map::new();
        fields.insert("timestamp".into(), jiff::Timestamp::now().to_string().into());
        fields.insert("level".into(), event.metadata().level().as_str().into());
        fields.insert("node_id".into(), self.node_id.clone().into());
        event.record(&mut Fields(&mut fields));
        writeln!(out, "{}", Value::Object(fields))
    }
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_string(), value);
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = write!(text, "{value:?}");
        self.put(field, text.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}
