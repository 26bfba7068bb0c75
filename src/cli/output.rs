//! What commands write: results to standard output, complaints to standard error.
//!
//! On tokio's blocking threads, so that a command that catches signals still sees them while nobody reads what it writes. A
//! reader that has gone, or a full disk, ends a command with an error, where `println!` would panic.

use std::io::{self, ErrorKind};
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::Failure;

/// How long a command waits for its last words to be read.
const COMPLAINT_TIMEOUT: Duration = Duration::from_millis(500);

/// Writes all of it now: an error that shows after the command has ended would go unseen.
pub(super) async fn write(bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
    let written = write_to(&mut tokio::io::stdout(), bytes.as_ref()).await;
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::NobodyReads,
        _ => Failure::Refused(format!("standard output: {error}")),
    })
}

/// Writes a line.
pub(super) async fn line(text: &str) -> Result<(), Failure> {
    write(format!("{text}\n")).await
}

/// Writes a line to standard error that must not be lost.
pub(super) async fn side_line(text: &str) -> Result<(), Failure> {
    let written = write_to(&mut tokio::io::stderr(), format!("{text}\n").as_bytes()).await;
    written.map_err(|error| Failure::Refused(format!("standard error: {error}")))
}

/// Says why the command fails. If that cannot be written, the exit code has to do.
pub(super) async fn complain(reason: &str) {
    let text = format!("shoal: {reason}\n");
    let _ = timeout(COMPLAINT_TIMEOUT, write_to(&mut tokio::io::stderr(), text.as_bytes())).await;
}

async fn write_to(out: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes).await?;
    out.flush().await
}
