//! Flags and environment into the configuration of each module, validated once.
//!
//! Every error names the flag, what was given, and what is accepted.

mod addresses;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod limits;
mod security;
mod units;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use rand::RngExt;

pub use self::limits::LimitArgs;
pub(crate) use self::security::SECRET_VARIABLE;
pub use self::security::SecurityArgs;
use self::units::{check_host, check_host_port, duration, size, size_within};
use crate::gossip::{Detection, GossipConfig};
use crate::http::HttpConfig;
use crate::model::{NodeId, StoreConfig, mix};
use crate::node::NodeConfig;
use crate::security::SecurityConfig;
use crate::telemetry::LogFormat;

/// Less than this and a write cannot outlast an owner that falls silent, whose lease has to run out first; more and clients
/// have long given up.
const REQUEST_TIMEOUT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// Nobody waits an hour for a process to stop.
const DRAIN_TIMEOUT: [Duration; 2] = [Duration::ZERO, Duration::from_secs(3600)];
/// The most copies; more would make every write wait for a large part of the cluster.
const COPIES_MAX: u8 = 8;
/// A store smaller than this holds too little to be of use, and its bookkeeping would be most of it.
const MEMORY_BYTES_MIN: usize = 1 << 20;
/// Longer values would be copied through several buffers of this size on each hop.
const VALUE_BYTES_MAX: usize = 1 << 30;

/// The flags of `shoal node`.
#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    /// Address to listen on: HTTP over TCP, gossip over UDP. host:port, a host alone for port 8001, or :port for every IPv4
    /// address (`[::]:port` for IPv6 as well)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8001", env = "SHOAL_LISTEN")]
    pub listen: String,
    /// Address that others are told, host:port; auto is this machine's address on the route towards the seeds, with the port of
    /// --listen [default: the listen address; auto if that is every address]
    #[arg(long, value_name = "ADDR", env = "SHOAL_ADVERTISE")]
    pub advertise: Option<String>,
    /// Name of this node, unique in the cluster: 1-64 of letters, digits, '.', '_', '-' [default: host name and port]
    #[arg(long, value_name = "NAME", env = "SHOAL_ID")]
    pub id: Option<String>,
    /// Address of any node of the cluster, host:port; repeatable or comma-separated
    #[arg(long, value_name = "ADDR", env = "SHOAL_JOIN", value_delimiter = ',')]
    pub join: Vec<String>,
    /// Name of the cluster; nodes of another name are ignored
    #[arg(long, value_name = "NAME", default_value = "shoal", env = "SHOAL_CLUSTER")]
    pub cluster: String,
    /// Copies of each entry, 1-8
    #[arg(long, value_name = "N", default_value = "2", env = "SHOAL_COPIES")]
    pub copies: String,
    /// Bound on the memory of the store, for example 512MiB or 2GiB
    #[arg(long, value_name = "SIZE", default_value = "256MiB", env = "SHOAL_MAX_MEMORY")]
    pub max_memory: String,
    /// Longest value that is accepted
    #[arg(long, value_name = "SIZE", default_value = "8MiB", env = "SHOAL_MAX_VALUE_SIZE")]
    pub max_value_size: String,
    /// How soon a silent node counts as dead: lan about 1 s, fast about half of that, relaxed for slow networks
    #[arg(long, value_name = "PROFILE", default_value = "lan", env = "SHOAL_DETECTION")]
    pub detection: DetectionArg,
    /// How long one request may take in all, with every other node that it needs: 1s to 60s
    #[arg(long, value_name = "DURATION", default_value = "2s", env = "SHOAL_REQUEST_TIMEOUT")]
    pub request_timeout: String,
    /// How long a stopping node may hand over its entries before it exits all the same: 0s to 1h. With the 3 s that the rest of a
    /// stop may take, the default fits what docker stop (10 s) and Kubernetes (30 s) wait; raise theirs with it
    #[arg(long, value_name = "DURATION", default_value = "7s", env = "SHOAL_DRAIN_TIMEOUT")]
    pub drain_timeout: String,
    /// Shape of the logs [default: text on a terminal, else json]
    #[arg(long, value_name = "FORMAT", env = "SHOAL_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as shoal::gossip=debug
    #[arg(long, value_name = "FILTER", default_value = "info", env = "SHOAL_LOG")]
    pub log: String,
    /// Log each request about a key
    #[arg(long, env = "SHOAL_ACCESS_LOG", value_parser = BoolishValueParser::new())]
    pub access_log: bool,
    /// What keeps strangers out
    #[command(flatten)]
    pub security: SecurityArgs,
    /// What bounds strangers
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// The detection profiles by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[expect(missing_docs, reason = "described at gossip::Detection")]
pub enum DetectionArg {
    Lan,
    Fast,
    Relaxed,
}

/// A node's whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// What others are told; the listen address if there is none. Port 0 is the real one of the listener.
    pub advertise: Option<SocketAddr>,
    /// The node's name; made from the host's name and the real port if there is none.
    pub id: Option<NodeId>,
    /// How long a leaving node hands over its entries.
    pub drain_timeout: Duration,
    /// For the cluster's logic.
    pub node: NodeConfig,
    /// For membership.
    pub gossip: GossipConfig,
    /// Where secrets, certificates and keys are.
    pub security: SecurityConfig,
    /// For the HTTP edge.
    pub http: HttpConfig,
}

/// A flag or a variable that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct ConfigError {
    what: String,
    reason: String,
}

impl ConfigError {
    /// Of something whose value is a secret.
    fn unrepeated(name: &str, reason: impl Into<String>) -> ConfigError {
        ConfigError { what: name.into(), reason: reason.into() }
    }
}

fn bad(flag: &'static str, given: &str, reason: impl Into<String>) -> ConfigError {
    ConfigError { what: format!("--{flag} {given:?}"), reason: reason.into() }
}

impl TryFrom<&NodeArgs> for Config {
    type Error = ConfigError;

    fn try_from(args: &NodeArgs) -> Result<Config, ConfigError> {
        let listen = addresses::listen(&args.listen)?;
        let security = args.security.resolve(listen)?;
        // As after a last comma.
        let seeds: Vec<String> = args.join.iter().filter(|seed| !seed.is_empty()).cloned().collect();
        for seed in &seeds {
            check_host_port("join", seed)?;
        }
        let advertise = addresses::advertised(args.advertise.as_deref(), listen, &seeds)?;
        let id = args
            .id
            .as_deref()
            .map(|text| NodeId::parse(text).map_err(|error| bad("id", text, error.to_string())));
        if args.cluster.is_empty()
            || args.cluster.len() > 64
            || !args.cluster.chars().all(|c| c.is_ascii_graphic())
        {
            return Err(bad(
                "cluster",
                &args.cluster,
                "must be 1-64 printable ASCII characters without spaces",
            ));
        }
        let copies =
            args.copies.parse().ok().and_then(NonZeroU8::new).filter(|copies| copies.get() <= COPIES_MAX);
        let copies = copies.ok_or_else(|| {
            bad("copies", &args.copies, format!("must be a whole number from 1 to {COPIES_MAX}"))
        })?;
        let memory_bytes_max = size("max-memory", &args.max_memory)?;
        if memory_bytes_max < MEMORY_BYTES_MIN {
            return Err(bad("max-memory", &args.max_memory, "must be at least 1MiB"));
        }
        let value_bytes_max =
            size_within("max-value-size", &args.max_value_size, 1..=VALUE_BYTES_MAX, "from 1B to 1GiB")?;
        let mut random = rand::rng();
        let seed = random.random();
        Ok(Config {
            listen,
            advertise,
            id: id.transpose()?,
            drain_timeout: duration("drain-timeout", &args.drain_timeout, DRAIN_TIMEOUT)?,
            node: NodeConfig {
                copies,
                store: StoreConfig::for_resident(memory_bytes_max, value_bytes_max, random.random()),
                request_timeout: duration("request-timeout", &args.request_timeout, REQUEST_TIMEOUT)?,
                seed,
                seeds,
            },
            gossip: GossipConfig {
                cluster: args.cluster.clone(),
                detection: match args.detection {
                    DetectionArg::Lan => Detection::Lan,
                    DetectionArg::Fast => Detection::Fast,
                    DetectionArg::Relaxed => Detection::Relaxed,
                },
                seed,
            },
            http: HttpConfig {
                value_bytes_max,
                access_log: args.access_log,
                hosts: args.hosts()?,
                limits: args.limits.resolve(value_bytes_max)?,
            },
            security,
        })
    }
}

impl NodeArgs {
    /// The names among the addresses of this node, and those that it was given besides.
    fn hosts(&self) -> Result<Vec<String>, ConfigError> {
        let listen = addresses::complete(&self.listen);
        let addresses = [Some(&listen), self.advertise.as_ref()].into_iter().flatten();
        let own = addresses.filter_map(|text| Some(text.rsplit_once(':')?.0.to_string()));
        let named = own.chain(self.security.tls_server_name.clone());
        let mut hosts: Vec<String> =
            named.filter(|name| name.trim_matches(['[', ']']).parse::<IpAddr>().is_err()).collect();
        for name in self.security.allow_host.iter().filter(|name| !name.is_empty()) {
            check_host("allow-host", name)?;
            hosts.push(name.clone());
        }
        Ok(hosts)
    }
}

/// What this machine calls itself.
fn host_name() -> String {
    // Of /proc a service may see nothing.
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The name of a node that was given none: the host's, and the port that tells nodes of one host apart.
#[must_use]
pub fn default_id(port: u16) -> NodeId {
    id_of(&host_name(), port)
}

fn id_of(host: &str, port: u16) -> NodeId {
    let plain: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || ".-_".contains(*c)).collect();
    let host = if plain.is_empty() { "node".to_string() } else { plain };
    let room = NodeId::BYTES_MAX - format!("-{port}").len();
    let host = if host.len() <= room {
        host
    } else {
        // Names of one machine often differ at their ends only.
        let end = format!("-{:08x}", mix::hash(0, host.as_bytes()) >> 32);
        format!("{}{end}", &host[..room - end.len()])
    };
    NodeId::parse(&format!("{host}-{port}")).expect("made of the accepted characters, at most 64")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        node: NodeArgs,
    }

    fn parse(flags: &[&str]) -> Result<Config, String> {
        let all = [&["node"], flags].concat();
        Config::try_from(&Command::parse_from(all).node).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_the_interface() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8001");
        assert_eq!(config.node.copies.get(), 2);
        assert_eq!(config.node.store.memory_bytes_max, 240 << 20);
        assert_eq!(config.http.value_bytes_max, 8 << 20);
        assert_eq!(config.gossip.detection, Detection::Lan);
        assert_eq!(config.node.request_timeout, Duration::from_secs(2));
        assert_eq!(config.drain_timeout, Duration::from_secs(7));
    }

    #[test]
    fn durations_have_a_unit() {
        let config = parse(&["--request-timeout", "1500ms", "--drain-timeout", "1m"]).unwrap();
        assert_eq!(config.node.request_timeout, Duration::from_millis(1500));
        assert_eq!(config.drain_timeout, Duration::from_secs(60));
        assert_eq!(parse(&["--drain-timeout", "0s"]).unwrap().drain_timeout, Duration::ZERO);
    }

    #[test]
    fn a_bad_flag_is_named_with_what_is_accepted() {
        for (flags, error) in [
            (
                ["--listen", "8001"],
                r#"--listen "8001": must be host:port, for example 127.0.0.1:8001 or [::1]:8001"#,
            ),
            (["--copies", "9"], r#"--copies "9": must be a whole number from 1 to 8"#),
            (["--copies", "two"], r#"--copies "two": must be a whole number from 1 to 8"#),
            (
                ["--max-memory", "10K"],
                "--max-memory \"10K\": must be a number of bytes with or without KiB, MiB, GiB (or Ki, Mi, Gi), KB, MB or GB",
            ),
            (
                ["--request-timeout", "2"],
                "--request-timeout \"2\": must be a whole number of ms, s, m or h, from 1s to 60s",
            ),
            (
                ["--drain-timeout", "2h"],
                "--drain-timeout \"2h\": must be a whole number of ms, s, m or h, from 0ns to 3600s",
            ),
            (["--max-memory", "10KiB"], "--max-memory \"10KiB\": must be at least 1MiB"),
            (
                ["--join", "::1:8001"],
                r#"--join "::1:8001": must be host:port, for example 127.0.0.1:8001 or [::1]:8001"#,
            ),
        ] {
            assert_eq!(parse(&flags).unwrap_err(), error);
        }
        assert!(parse(&["--id", "a b"]).unwrap_err().starts_with("--id \"a b\": "));
    }

    #[test]
    fn the_names_of_a_node_are_those_it_was_given() {
        let hosts = |flags: &[&str]| parse(flags).map(|config| config.http.hosts);
        assert_eq!(hosts(&["--listen", "[::1]:8001"]).unwrap(), Vec::<String>::new());
        assert_eq!(hosts(&["--listen", "localhost:8001"]).unwrap(), ["localhost"]);
        let more = hosts(&["--allow-host", "a.example,b", "--allow-host", "c"]).unwrap();
        assert_eq!(more, ["a.example", "b", "c"]);
        for wrong in ["a:80", "http://a", "*"] {
            assert!(hosts(&["--allow-host", wrong]).unwrap_err().contains("must be a host name"), "{wrong}");
        }
    }

    #[test]
    fn host_names_that_differ_only_at_their_ends_are_two_ids() {
        assert_eq!(id_of("web-1.example", 8001).as_str(), "web-1.example-8001");
        assert_eq!(id_of("", 8001).as_str(), "node-8001");
        let long = "a-deployment-with-a-name-that-fills-all-of-the-room-there-is-";
        let [a, b] = ["7d4b9", "x2k8q"].map(|end| id_of(&format!("{long}{end}"), 65_535));
        assert_ne!(a, b);
        assert_eq!(a, id_of(&format!("{long}7d4b9"), 65_535), "the same each time");
        assert!(a.as_str().len() <= NodeId::BYTES_MAX && a.as_str().starts_with("a-deployment"), "{a}");
    }

    #[test]
    fn seeds_are_repeated_or_separated_by_commas() {
        let config = parse(&["--join", "a:1,b:2", "--join", "[::1]:3"]).unwrap();
        assert_eq!(config.node.seeds, ["a:1", "b:2", "[::1]:3"]);
        assert_eq!(parse(&["--join", "a:1,"]).unwrap().node.seeds, ["a:1"]);
    }
}
