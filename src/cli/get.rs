//! `shoal get`: writes a value to standard output.

use std::io::{self, IsTerminal};

use clap::Args;

use super::{Failure, Target, output};

#[derive(Args, Debug)]
pub(super) struct GetArgs {
    /// The key
    key: String,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn run(args: &GetArgs) -> Result<(), Failure> {
    let hit = args.target.client()?.get(&args.key).await?;
    let hit = hit.ok_or_else(|| Failure::Refused(format!("{:?} not found", args.key)))?;
    output::write(&hit.value).await?;
    if io::stdout().is_terminal() { output::write("\n").await } else { Ok(()) }
}
