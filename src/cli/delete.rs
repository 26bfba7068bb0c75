//! `shoal delete`: removes a key.

use clap::Args;

use super::{Failure, Target};

#[derive(Args, Debug)]
pub(super) struct DeleteArgs {
    /// The key
    key: String,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn run(args: &DeleteArgs) -> Result<(), Failure> {
    if args.target.client()?.delete(&args.key).await? {
        return Ok(());
    }
    Err(Failure::Refused(format!("{:?} not found", args.key)))
}
