//! `shoal put`: stores a value.

use std::io::{self, Read};
use std::time::Duration;

use clap::Args;

use super::{Failure, Target};
use crate::client::PutOptions;

#[derive(Args, Debug)]
pub(super) struct PutArgs {
    /// The key
    key: String,
    /// The value, or - to read it from standard input
    value: String,
    /// Time to live in seconds [default: for ever]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    ttl: Option<Duration>,
    /// Media type that the value is stored with
    #[arg(long, value_name = "TYPE", default_value = "text/plain; charset=utf-8")]
    content_type: String,
    #[command(flatten)]
    target: Target,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let ttl = text.parse().ok().filter(|seconds: &f64| *seconds > 0.0);
    let ttl = ttl.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    ttl.ok_or_else(|| "it must be a number of seconds above 0".into())
}

pub(super) async fn run(args: PutArgs) -> Result<(), Failure> {
    let value = match args.value.as_str() {
        "-" => read_input()?,
        _ => args.value.into_bytes(),
    };
    let options = PutOptions { ttl: args.ttl, content_type: Some(args.content_type) };
    Ok(args.target.client()?.put(&args.key, value, &options).await?)
}

fn read_input() -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    let read = io::stdin().lock().read_to_end(&mut value);
    read.map_err(|error| Failure::Usage(format!("standard input: {error}")))?;
    Ok(value)
}
