//! `shoal get`: writes a value to standard output.

use std::io::{self, IsTerminal, Write};

use clap::Args;

use super::{Failure, Target};

#[derive(Args, Debug)]
pub(super) struct GetArgs {
    /// The key
    key: String,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn run(args: &GetArgs) -> Result<(), Failure> {
    let hit = args.target.client().get(&args.key).await?;
    let hit = hit.ok_or_else(|| Failure::Refused(format!("{:?} not found", args.key)))?;
    let mut out = io::stdout().lock();
    let mut written = out.write_all(&hit.value);
    if out.is_terminal() {
        written = written.and_then(|()| writeln!(out));
    }
    written.map_err(|error| Failure::Refused(format!("standard output: {error}")))
}
