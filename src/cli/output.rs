//! Standard output of the commands.
//!
//! A reader that has gone (`shoal watch | head -1`) ends a command quietly, where `println!` would panic.

use std::io::{self, ErrorKind, Write};

use super::Failure;

/// Writes all of it now: an error that shows after the command has ended would go unseen.
pub(super) fn write(bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes.as_ref()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::NobodyReads,
        _ => Failure::Refused(format!("standard output: {error}")),
    })
}

/// Writes a line.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    write(format!("{text}\n"))
}
