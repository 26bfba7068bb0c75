//! `shoal node`: runs a node until it is told to stop.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, NodeArgs};
use crate::net::WallClock;
use crate::node::Stop;
use crate::{server, telemetry};

/// Usage, and everything else that starting again the same way would not mend.
const UNUSABLE: u8 = 2;

/// Runs the node.
pub(super) async fn run(args: &NodeArgs) -> ExitCode {
    let started = match start(args).await {
        Ok(started) => started,
        Err(reason) => return fail(&reason),
    };
    let stop = tokio::select! {
        stop = started.stop_wanted() => stop,
        () = signalled() => Stop::Leave,
    };
    if let Stop::Fatal(reason) = stop {
        return fail(&reason);
    }
    tokio::select! {
        () = started.shutdown() => ExitCode::SUCCESS,
        // A second signal: somebody is in a hurry.
        () = signalled() => ExitCode::FAILURE,
    }
}

async fn start(args: &NodeArgs) -> Result<server::Server, String> {
    let config = Config::try_from(args).map_err(|error| error.to_string())?;
    let bound = server::bind(config.listen).await.map_err(|error| error.to_string())?;
    let node_id = server::node_id(&config, &bound);
    telemetry::start_logging(args.log_format, &args.log, &node_id)
        .map_err(|error| format!("--log {:?}: {error}", args.log))?;
    Ok(server::start(config, bound, WallClock::system(), &mut rand::rng()))
}

fn fail(reason: &str) -> ExitCode {
    eprintln!("shoal: {reason}");
    ExitCode::from(UNUSABLE)
}

pub(super) async fn signalled() {
    let mut signals = [SignalKind::terminate(), SignalKind::interrupt()].map(|kind| {
        // Fails only for kinds that may not be caught.
        signal(kind).expect("SIGTERM and SIGINT can be caught")
    });
    let [terminate, interrupt] = &mut signals;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
