//! `shoal node`: runs a node until it is told to stop.

use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::runtime::{self, NodeRuntime};
use crate::config::{Config, NodeArgs};
use crate::net::{WallClock, vital};
use crate::node::Stop;
use crate::security::Security;
use crate::server;
use crate::telemetry::{self, Logs};

/// Files besides clients' connections: links, sockets to listen on, standard output.
const OTHER_FILES: usize = 512;

/// Runs the node.
pub(super) fn run(args: &NodeArgs) -> ExitCode {
    // First: nothing that a node does may depend on whether its log can be written.
    let logs = match Logs::start() {
        Ok(logs) => logs,
        Err(error) => return super::fail(&runtime::too_few(&error)),
    };
    let NodeRuntime { runtime, shortage } = match runtime::of_node() {
        Ok(started) => started,
        Err(reason) => return fail(&reason),
    };
    let code = runtime.block_on(vital("main", serve(args, &logs, shortage)));
    // Names that are still being resolved keep no node from stopping.
    runtime.shutdown_background();
    code
}

async fn serve(args: &NodeArgs, logs: &Logs, shortage: Option<String>) -> ExitCode {
    // Before anything else: until it is caught, it ends the process. Fails only for kinds that may not be caught.
    let hangup = signal(SignalKind::hangup()).expect("SIGHUP can be caught");
    let started = match start(args, logs, shortage).await {
        Ok(started) => started,
        Err(reason) => return fail(&reason),
    };
    let stop = tokio::select! {
        stop = started.stop_wanted() => stop,
        () = signalled() => Stop::Leave,
        never = reload_when_told(&started, hangup) => match never {},
    };
    if let Stop::Fatal(reason) = stop {
        started.abandon().await;
        return fail(&reason);
    }
    tokio::select! {
        () = started.shutdown() => ExitCode::SUCCESS,
        // A second signal: somebody is in a hurry.
        () = signalled() => ExitCode::FAILURE,
    }
}

async fn start(args: &NodeArgs, logs: &Logs, shortage: Option<String>) -> Result<server::Server, String> {
    let config = Config::try_from(args).map_err(|error| error.to_string())?;
    let security = Security::load(config.security.clone()).map_err(|error| error.to_string())?;
    let bound = server::bind(config.listen).await.map_err(|error| error.to_string())?;
    let node_id = server::node_id(&config, &bound);
    logs.begin(args.log_format, &args.log, &node_id)
        .map_err(|error| format!("--log {:?}: {error}", args.log))?;
    let is_open = config.security.secret.is_none() && !config.listen.ip().is_loopback();
    let connections = config.http.limits.connections;
    let started = server::start(config, Arc::new(security), bound, WallClock::system(), &mut rand::rng());
    raise_file_limit(connections);
    if let Some(shortage) = shortage {
        warn!("this node has fewer threads than processors: {shortage}");
    }
    if is_open {
        warn!("this cluster has no secret (--insecure): whoever reaches this address may do everything");
    }
    Ok(started)
}

/// On each SIGHUP, what is secret is read again.
async fn reload_when_told(started: &server::Server, mut hangup: Signal) -> Infallible {
    loop {
        hangup.recv().await;
        match started.reload() {
            Ok(()) => info!("secrets, certificates and keys were read again"),
            Err(error) => {
                error!(%error, "nothing was changed: secrets, certificates and keys are as they were");
            }
        }
    }
}

/// Lets the process have as many connections as it may: the usual 1024 are soon gone.
fn raise_file_limit(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    // Fails where the system forbids it; then the next line says what that means.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let wanted = connections + OTHER_FILES;
    if let Some(files) = getrlimit(Resource::Nofile).current.filter(|files| *files < wanted as u64) {
        warn!(
            files,
            wanted, "the system lets this process have fewer open files than --max-connections needs"
        );
    }
}

fn fail(reason: &str) -> ExitCode {
    telemetry::last_words(reason);
    ExitCode::from(super::UNUSABLE)
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
