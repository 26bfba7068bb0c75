//! `shoal proof`: the header that lets one call of `/internal` in, for people who debug.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use rand::RngExt;

use super::{Failure, output};
use crate::config::SecurityArgs;
use crate::model::NodeId;
use crate::net::WallClock;
use crate::security::{self, Call, PROOF_HEADER};

#[derive(Args, Debug)]
pub(super) struct ProofArgs {
    /// Name of the node that is to be called
    #[arg(long, value_name = "NAME")]
    to: String,
    /// Method of the call: GET, PUT …
    method: String,
    /// Path and query, as they are sent
    path: String,
    /// File with the body of the call [default: none]
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    /// File of the cluster's secret [default: SHOAL_CLUSTER_SECRET holds it]
    #[arg(long, value_name = "FILE", env = "SHOAL_CLUSTER_SECRET_FILE")]
    cluster_secret_file: Option<PathBuf>,
    /// Name of the cluster
    #[arg(long, value_name = "NAME", default_value = "shoal", env = "SHOAL_CLUSTER")]
    cluster: String,
}

pub(super) async fn run(args: ProofArgs) -> Result<(), Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
    let security = SecurityArgs { cluster_secret_file: args.cluster_secret_file, ..SecurityArgs::default() };
    let source = security.secret().map_err(|error| usage(&error))?;
    let source = source
        .ok_or_else(|| Failure::Usage("--cluster-secret-file is missing; whose proof is it to be?".into()))?;
    let keyring = security::keyring(&source).map_err(|error| usage(&error))?;
    let body = args.body.as_ref().map(|path| {
        fs::read(path).map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", path.display())))
    });
    let node =
        NodeId::parse(&args.to).map_err(|error| Failure::Usage(format!("--to {:?}: {error}", args.to)))?;
    let call =
        Call { cluster: &args.cluster, node: &node, method: &args.method.to_uppercase(), target: &args.path };
    let now_ms = WallClock::system().now_ms();
    let proof = call.prove(&keyring, &body.transpose()?.unwrap_or_default(), now_ms, rand::rng().random());
    output::line(&format!("{PROOF_HEADER}: {proof}")).await
}
