//! The commands, one file each.

mod delete;
mod demo;
mod get;
mod node;
mod nodes;
mod output;
mod put;
mod watch;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::client::{Client, ClientError};
use crate::config::NodeArgs;

/// A gossip-based peer-to-peer cache: equal nodes, one address each, HTTP from any of them.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 done, 1 not found or refused, 2 usage, 3 unreachable.\n\n\
    Examples:\n  shoal demo\n  shoal node --listen 127.0.0.1:8001 --id node1\n  \
    shoal node --listen 127.0.0.1:8002 --id node2 --join 127.0.0.1:8001\n  \
    shoal put greeting hello && shoal get greeting --node 127.0.0.1:8002")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node
    #[command(after_help = "Examples:\n  shoal node --listen 127.0.0.1:8001 --id node1\n  \
        shoal node --listen 127.0.0.1:8002 --id node2 --join 127.0.0.1:8001\n  \
        shoal node --listen 0.0.0.0:8001 --advertise 10.0.0.5:8001 --join cache.internal:8001")]
    Node(Box<NodeArgs>),
    /// Run several nodes on this machine, to try things out
    #[command(after_help = "Examples:\n  shoal demo\n  shoal demo --nodes 5 --port 9001")]
    Demo(demo::DemoArgs),
    /// Write a key's value to standard output
    #[command(after_help = "Examples:\n  shoal get greeting\n  shoal get 'photos/1 2.png' > 12.png")]
    Get(get::GetArgs),
    /// Store a value under a key
    #[command(after_help = "Examples:\n  shoal put greeting hello\n  shoal put greeting hello --ttl 60\n  \
        shoal put photo --content-type image/png - < photo.png")]
    Put(put::PutArgs),
    /// Remove a key
    #[command(after_help = "Example:\n  shoal delete greeting")]
    Delete(delete::DeleteArgs),
    /// Show the members of the cluster
    #[command(after_help = "Example:\n  shoal nodes --node 127.0.0.1:8002")]
    Nodes(Target),
    /// Follow what happens in the cluster, one line each
    #[command(after_help = "Example:\n  shoal watch --node 127.0.0.1:8002")]
    Watch(Target),
}

/// Which node a command talks to.
#[derive(Args, Clone, Debug)]
struct Target {
    /// Address of any node, host:port
    #[arg(long, value_name = "ADDR", env = "SHOAL_NODE")]
    #[arg(default_value = "127.0.0.1:8001", value_parser = host_port)]
    node: String,
}

impl Target {
    fn client(&self) -> Client {
        Client::new(&self.node)
    }
}

fn host_port(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_string()),
        _ => Err("it must be host:port, for example 127.0.0.1:8001".into()),
    }
}

/// What a command comes to, short of success.
#[derive(Debug)]
enum Failure {
    /// Not found, or refused.
    Refused(String),
    /// Not to be used this way.
    Usage(String),
    /// No node answered.
    Unreachable(String),
    /// Who read the output has seen enough.
    NobodyReads,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        match error {
            ClientError::Unreachable { .. } | ClientError::Timeout { .. } => {
                Failure::Unreachable(error.to_string())
            }
            ClientError::Refused { .. } | ClientError::Protocol(_) => Failure::Refused(error.to_string()),
        }
    }
}

/// Runs the command, and says how it ended.
pub async fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Node(args) => return node::run(&args).await,
        Command::Demo(args) => demo::run(&args).await,
        Command::Get(args) => get::run(&args).await,
        Command::Put(args) => put::run(args).await,
        Command::Delete(args) => delete::run(&args).await,
        Command::Nodes(target) => nodes::run(&target).await,
        Command::Watch(target) => watch::run(&target.node).await,
    };
    let (code, reason) = match done {
        Ok(()) | Err(Failure::NobodyReads) => return ExitCode::SUCCESS,
        Err(Failure::Refused(reason)) => (1, reason),
        Err(Failure::Usage(reason)) => (2, reason),
        Err(Failure::Unreachable(reason)) => (3, reason),
    };
    eprintln!("shoal: {reason}");
    ExitCode::from(code)
}
