//! What a line of the log looks like.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The shape of lines, for those that do not come from tracing: that could filter them out, or be what has panicked.
#[derive(Clone, Debug)]
pub(super) enum Style {
    Text,
    Json(JsonLines),
}

impl Style {
    /// A whole line.
    pub(super) fn line(&self, level: Level, message: &str, fields: &[(&str, Value)]) -> String {
        match self {
            Style::Text => {
                let mut line = format!("{} {:>5} {message}", jiff::Timestamp::now(), level.as_str());
                for (name, value) in fields {
                    // Writing to a string does not fail.
                    let _ = write!(line, " {name}={value}");
                }
                line.push('\n');
                line
            }
            Style::Json(lines) => {
                let mut all = lines.begin(level);
                all.insert("message".into(), message.into());
                all.extend(fields.iter().map(|(name, value)| ((*name).to_string(), value.clone())));
                format!("{}\n", Value::Object(all))
            }
        }
    }
}

/// One JSON object a line, with the node's name at the top level as the interface promises.
#[derive(Clone, Debug)]
pub(super) struct JsonLines {
    pub(super) node_id: String,
}

impl JsonLines {
    fn begin(&self, level: Level) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("timestamp".into(), jiff::Timestamp::now().to_string().into());
        fields.insert("level".into(), level.as_str().into());
        fields.insert("node_id".into(), self.node_id.clone().into());
        fields
    }
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = self.begin(*event.metadata().level());
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
