//! `shoal key`: a new key for a client.

use clap::{Args, ValueEnum};

use super::{Failure, output};
use crate::security::Grant;

#[derive(Args, Debug)]
pub(super) struct KeyArgs {
    /// Name of the client: 1-64 of letters, digits, '.', '_', '-'
    name: String,
    /// What the client may do
    #[arg(long, value_name = "RIGHTS", value_delimiter = ',', default_value = "read,write")]
    rights: Vec<RightArg>,
    /// Only with keys of the cache that begin like this
    #[arg(long, value_name = "PREFIX", default_value = "")]
    prefix: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RightArg {
    Read,
    Write,
}

/// The line for the file goes to standard output, so that it can be appended to the file; what the client has to show goes to
/// standard error, where a person sees it once.
pub(super) async fn run(args: KeyArgs) -> Result<(), Failure> {
    let has = |right| args.rights.contains(&right);
    let grant = Grant {
        read: has(RightArg::Read),
        write: has(RightArg::Write),
        name: args.name,
        prefix: args.prefix,
    };
    let (shown, line) = grant.issue(&mut rand::rng()).map_err(Failure::Usage)?;
    // First: a line in the file is of no use without the key.
    output::side_line(&format!("The key of {}, which is kept nowhere else: {shown}", grant.name)).await?;
    output::line(&line).await
}
