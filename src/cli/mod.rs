//! The commands, one file each.

mod delete;
mod demo;
mod environment;
mod get;
mod key;
mod node;
mod nodes;
mod output;
mod proof;
mod put;
mod runtime;
mod secret;
mod watch;

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use rustls::pki_types::ServerName;
use tokio_rustls::rustls;

use crate::client::{Access, Client, ClientError, ClientTls};
use crate::config::NodeArgs;
use crate::security::{self, FileError};

/// Usage, and everything else that starting again the same way would not mend.
const UNUSABLE: u8 = 2;

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
        shoal node --listen 0.0.0.0:8001 --advertise 10.0.0.5:8001 --join cache.internal:8001 \
        --cluster-secret-file secret")]
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
    /// Print a new cluster secret, for --cluster-secret-file of every node
    #[command(after_help = "Example:\n  (umask 077; shoal secret > cluster-secret)")]
    Secret,
    /// Make a key for a client: prints the line for --api-keys-file, and the key itself to standard error
    #[command(after_help = "Examples:\n  shoal key web >> api-keys\n  \
        shoal key reports --rights read --prefix report/ >> api-keys")]
    Key(key::KeyArgs),
    /// Print the header that proves one call of /internal to a cluster that has a secret
    #[command(after_help = "Example:\n  \
        curl -H \"$(shoal proof --to node1 GET /internal/cluster/health)\" 127.0.0.1:8001/internal/cluster/health")]
    Proof(proof::ProofArgs),
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
    /// File of what to show: an API key, or for `nodes` and `watch` the admin token
    #[arg(long, value_name = "FILE", env = "SHOAL_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Authorities that the node's certificate is from, PEM; without them nothing but plain HTTP is spoken
    #[arg(long, value_name = "FILE", env = "SHOAL_TLS_CA")]
    tls_ca: Option<PathBuf>,
    /// Certificate to show, PEM, where the node asks for one
    #[arg(long, value_name = "FILE", env = "SHOAL_TLS_CERT", requires_all = ["tls_ca", "tls_key"])]
    tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", env = "SHOAL_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The name that the node's certificate has [default: that in --node]
    #[arg(long, value_name = "NAME", env = "SHOAL_TLS_SERVER_NAME", requires = "tls_ca")]
    #[arg(value_parser = server_name)]
    tls_server_name: Option<ServerName<'static>>,
}

impl Target {
    fn client(&self) -> Result<Client, Failure> {
        Ok(Client::with_access(&self.node, self.access()?))
    }

    fn access(&self) -> Result<Access, Failure> {
        let usage = |error: FileError| Failure::Usage(error.to_string());
        let token = self.token_file.as_deref().map(security::token_text).transpose().map_err(usage)?;
        let own = self.tls_cert.as_deref().zip(self.tls_key.as_deref());
        let name = self.tls_server_name.clone();
        let tls = self.tls_ca.as_deref().map(|ca| ClientTls::load(ca, own, name)).transpose();
        Ok(Access { token, tls: tls.map_err(usage)? })
    }
}

fn server_name(text: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(text.to_string()).map_err(|_| "it must be a host name or an IP address".into())
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

/// Reads the command line, runs the command, says how it ended.
#[must_use]
pub fn main() -> ExitCode {
    let command = environment::without_empty(Cli::command());
    let parsed = command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let command = match parsed {
        Ok(cli) => cli.command,
        Err(help) => return show(&help),
    };
    let runtime = match command {
        Command::Node(args) => {
            return match environment::check(&Cli::command()) {
                Ok(()) => node::run(&args),
                Err(reason) => fail(&reason),
            };
        }
        _ => runtime::of_command(),
    };
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(run(command));
            // Waits for nothing that is still to be written or resolved.
            runtime.shutdown_background();
            code
        }
        Err(reason) => fail(&reason),
    }
}

/// Shows what clap has to say: help, the version, or what is wrong with the command line.
fn show(help: &clap::Error) -> ExitCode {
    match help.print() {
        Err(error) if !help.use_stderr() && error.kind() != ErrorKind::BrokenPipe => {
            fail(&format!("standard output: {error}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::from(help.exit_code() as u8),
    }
}

/// Says why nothing could be begun, which the exit code tells also where that cannot be read.
fn fail(reason: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "shoal: {reason}");
    ExitCode::from(UNUSABLE)
}

/// Runs any command but `node`.
async fn run(command: Command) -> ExitCode {
    // People have seen enough of these, whatever comes after; where data is cut off, that is an error.
    let is_for_people = matches!(command, Command::Demo(_) | Command::Nodes(_) | Command::Watch(_));
    let done = match command {
        Command::Node(args) => return node::run(&args),
        Command::Demo(args) => demo::run(&args).await,
        Command::Get(args) => get::run(&args).await,
        Command::Put(args) => put::run(args).await,
        Command::Delete(args) => delete::run(&args).await,
        Command::Nodes(target) => nodes::run(&target).await,
        Command::Watch(target) => match target.access() {
            Ok(access) => watch::run(&target.node, &access).await,
            Err(failure) => Err(failure),
        },
        Command::Secret => secret::run().await,
        Command::Key(args) => key::run(args).await,
        Command::Proof(args) => proof::run(args).await,
    };
    let (code, reason) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::NobodyReads) if is_for_people => return ExitCode::SUCCESS,
        Err(Failure::NobodyReads) => return ExitCode::FAILURE,
        Err(Failure::Refused(reason)) => (1, reason),
        Err(Failure::Usage(reason)) => (UNUSABLE, reason),
        Err(Failure::Unreachable(reason)) => (3, reason),
    };
    output::complain(&reason).await;
    ExitCode::from(code)
}
