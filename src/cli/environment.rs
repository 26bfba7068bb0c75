//! The environment: which variables count.
//!
//! An empty variable counts as unset, because orchestrators leave such behind. One that names a file does not: a file of keys that
//! is left out in silence would let everybody in. Invariant: a node does not start with an unknown variable of its own prefix.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use clap::{Arg, Command};

use crate::config::SECRET_VARIABLE;

/// Every variable of shoal begins so.
const PREFIX: &str = "SHOAL_";

/// The command without the variables that are empty.
pub(super) fn without_empty(command: Command) -> Command {
    let keeps = |arg: &Arg| {
        let name = arg.get_env().and_then(OsStr::to_str).unwrap_or_default();
        names_a_file(name) || !std::env::var_os(name).is_some_and(|value| value.is_empty())
    };
    let command = command.mut_args(|arg| if keeps(&arg) { arg } else { arg.env(None::<&str>) });
    command.mut_subcommands(without_empty)
}

fn names_a_file(variable: &str) -> bool {
    variable.ends_with("_FILE") || variable.starts_with("SHOAL_TLS_") && variable != "SHOAL_TLS_SERVER_NAME"
}

/// Looks for a variable that sets no flag of the command or of its subcommands.
///
/// # Errors
/// Names the variable, and the nearest one that there is.
pub(super) fn check(command: &Command) -> Result<(), String> {
    let mut known = BTreeSet::from([SECRET_VARIABLE.to_string()]);
    collect(command, &mut known);
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    match names.filter(|name| name.starts_with(PREFIX)).find(|name| !is_known(name, &known)) {
        Some(unknown) => Err(complaint(&unknown, &known)),
        None => Ok(()),
    }
}

fn collect(command: &Command, known: &mut BTreeSet<String>) {
    let names = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str());
    known.extend(names.map(str::to_string));
    command.get_subcommands().for_each(|command| collect(command, known));
}

fn is_known(name: &str, known: &BTreeSet<String>) -> bool {
    known.contains(name) || is_of_kubernetes(name)
}

/// Kubernetes gives every container of a namespace variables of its services, also of one that is called shoal, or shoal-web.
/// Source: Kubernetes documentation, "Accessing the Service", environment variables.
fn is_of_kubernetes(name: &str) -> bool {
    let is_port = |rest: &str| {
        let mut words = rest.split('_');
        let is_number = words.next().is_some_and(|port| port.parse::<u16>().is_ok());
        let is_protocol = words.next().is_some_and(|protocol| ["TCP", "UDP", "SCTP"].contains(&protocol));
        is_number && is_protocol && words.next().is_none_or(|part| ["PROTO", "PORT", "ADDR"].contains(&part))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_PORT")
        || name.rsplit_once("_PORT_").is_some_and(|(_, rest)| is_port(rest))
}

fn complaint(unknown: &str, known: &BTreeSet<String>) -> String {
    let distance = |name: &&String| strsim::damerau_levenshtein(unknown, name);
    let nearest = known.iter().min_by_key(distance).map_or(SECRET_VARIABLE, String::as_str);
    format!("{unknown}: there is no such variable; the nearest is {nearest}, and `shoal node --help` has all")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> BTreeSet<String> {
        ["SHOAL_MAX_MEMORY", "SHOAL_JOIN", SECRET_VARIABLE].map(str::to_string).into()
    }

    #[test]
    fn a_misspelt_variable_is_told_the_nearest() {
        assert!(!is_known("SHOAL_MAX_MEMRY", &known()));
        assert!(complaint("SHOAL_MAX_MEMRY", &known()).contains("the nearest is SHOAL_MAX_MEMORY"));
        assert!(complaint("SHOAL_JION", &known()).contains("the nearest is SHOAL_JOIN"));
    }

    #[test]
    fn variables_of_kubernetes_services_are_no_mistakes() {
        for name in [
            "SHOAL_SERVICE_HOST",
            "SHOAL_SERVICE_PORT",
            "SHOAL_SERVICE_PORT_HTTP",
            "SHOAL_PORT",
            "SHOAL_PORT_8001_TCP",
            "SHOAL_WEB_PORT_8001_UDP_ADDR",
            "SHOAL_WEB_SERVICE_HOST",
        ] {
            assert!(is_known(name, &known()), "{name}");
        }
        for name in ["SHOAL_PORT_TCP", "SHOAL_PORTS", "SHOAL_SERVICE", "SHOAL_PORT_8001_HTTP"] {
            assert!(!is_known(name, &known()), "{name}");
        }
    }

    #[test]
    fn a_file_that_keeps_somebody_out_is_never_left_out() {
        assert!(names_a_file("SHOAL_API_KEYS_FILE") && names_a_file("SHOAL_TLS_CLIENT_CA"));
        assert!(!names_a_file("SHOAL_TLS_SERVER_NAME") && !names_a_file("SHOAL_JOIN"));
    }
}
