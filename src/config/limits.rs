//! The flags that bound what a stranger can make big or slow.

use std::time::Duration;

use clap::Args;

use super::ConfigError;
use super::units::{count, duration, size_within};
use crate::http::Limits;

/// Nobody needs a second less, and an hour is no bound.
const TIMEOUT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3600)];
/// What the HTTP parser takes at least, and what would let every connection hold too much.
const HEAD_BYTES: [usize; 2] = [8 << 10, 1 << 20];
const BODY_MEMORY_BYTES: [usize; 2] = [1 << 20, 1 << 40];

/// Limits of the HTTP edge.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Longest request line and headers together: 8KiB to 1MiB
    #[arg(long, value_name = "SIZE", default_value = "64KiB", env = "SHOAL_MAX_HEADER_SIZE")]
    pub max_header_size: String,
    /// Most headers of a request: 1 to 1000
    #[arg(long, value_name = "N", default_value = "100", env = "SHOAL_MAX_HEADERS")]
    pub max_headers: String,
    /// How long the headers of a request may take to arrive: 1s to 1h
    #[arg(long, value_name = "DURATION", default_value = "10s", env = "SHOAL_HEADER_TIMEOUT")]
    pub header_timeout: String,
    /// How long the body of a request may take to arrive, and an answer to be taken: 1s to 1h
    #[arg(long, value_name = "DURATION", default_value = "30s", env = "SHOAL_BODY_TIMEOUT")]
    pub body_timeout: String,
    /// How long a connection may stay open without a request: 1s to 1h
    #[arg(long, value_name = "DURATION", default_value = "75s", env = "SHOAL_IDLE_TIMEOUT")]
    pub idle_timeout: String,
    /// Memory for the long bodies of all requests, and as much for answers; at least three times the longest one: 1MiB to 1TiB
    #[arg(long, value_name = "SIZE", default_value = "256MiB", env = "SHOAL_MAX_BODY_MEMORY")]
    pub max_body_memory: String,
    /// Most connections at a time: 1 to 1000000
    #[arg(long, value_name = "N", default_value = "8192", env = "SHOAL_MAX_CONNECTIONS")]
    pub max_connections: String,
    /// Most connections of one address at a time (of IPv6, of one /64): 1 to 1000000
    #[arg(long, value_name = "N", default_value = "2048", env = "SHOAL_MAX_CONNECTIONS_PER_ADDRESS")]
    pub max_connections_per_address: String,
    /// Most requests under way at a time: 1 to 1000000
    #[arg(long, value_name = "N", default_value = "4096", env = "SHOAL_MAX_REQUESTS")]
    pub max_requests: String,
    /// Most streams of events at a time: 0 to 100000
    #[arg(long, value_name = "N", default_value = "64", env = "SHOAL_MAX_EVENT_STREAMS")]
    pub max_event_streams: String,
    /// Most operations of a batch: 1 to 1000
    #[arg(long, value_name = "N", default_value = "1000", env = "SHOAL_MAX_BATCH_SIZE")]
    pub max_batch_size: String,
}

impl LimitArgs {
    pub(super) fn resolve(&self, value_bytes_max: usize) -> Result<Limits, ConfigError> {
        const MILLION: usize = 1_000_000;
        let [shortest, longest] = HEAD_BYTES;
        let head_bytes =
            size_within("max-header-size", &self.max_header_size, shortest..=longest, "from 8KiB to 1MiB")?;
        let [least, most] = BODY_MEMORY_BYTES;
        let body_memory =
            size_within("max-body-memory", &self.max_body_memory, least..=most, "from 1MiB to 1TiB")?;
        Ok(Limits {
            head_bytes,
            headers: count("max-headers", &self.max_headers, 1..=1000)?,
            head_timeout: duration("header-timeout", &self.header_timeout, TIMEOUT)?,
            body_timeout: duration("body-timeout", &self.body_timeout, TIMEOUT)?,
            idle_timeout: duration("idle-timeout", &self.idle_timeout, TIMEOUT)?,
            body_memory_bytes: body_memory.max(crate::http::body_memory_least(value_bytes_max)),
            connections: count("max-connections", &self.max_connections, 1..=MILLION)?,
            connections_per_address: count(
                "max-connections-per-address",
                &self.max_connections_per_address,
                1..=MILLION,
            )?,
            requests: count("max-requests", &self.max_requests, 1..=MILLION)?,
            event_streams: count("max-event-streams", &self.max_event_streams, 0..=100_000)?,
            batch_operations: count(
                "max-batch-size",
                &self.max_batch_size,
                1..=crate::http::BATCH_OPERATIONS_MAX,
            )?,
        })
    }
}
