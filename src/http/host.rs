//! The `Host` of a request (RFC 9110 section 7.2, RFC 9112 section 3.2), and the names that a node goes by.
//!
//! A page whose own name was made to resolve to the node's address (DNS rebinding) is of the node's origin for a browser; the
//! name in `Host` is what gives it away. Invariant: an address is nobody's name, so it needs no entry.

use std::net::{Ipv4Addr, Ipv6Addr};

use hyper::Uri;
use hyper::header::HeaderValue;

/// Accepted everywhere: browsers resolve it to their own machine without asking anybody (RFC 6761 section 6.3).
const LOCALHOST: &str = "localhost";

/// Whom a request was sent to, as it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Host<'a> {
    /// With the port, as it was sent.
    pub(super) text: &'a str,
    name: &'a str,
    is_address: bool,
}

impl<'a> Host<'a> {
    /// None if the field's value is malformed.
    pub(super) fn of_header(value: &'a HeaderValue) -> Option<Host<'a>> {
        Host::parse(value.to_str().ok()?)
    }

    /// The one in a target of the absolute form, which goes before the header's. None if it is malformed, or names a user.
    pub(super) fn of_target(target: &'a Uri) -> Option<Host<'a>> {
        Host::parse(target.authority()?.as_str())
    }

    fn parse(text: &'a str) -> Option<Host<'a>> {
        let (name, rest, is_address) = match text.strip_prefix('[') {
            Some(bracketed) => {
                let (address, rest) = bracketed.split_once(']')?;
                address.parse::<Ipv6Addr>().ok()?;
                (address, rest, true)
            }
            None => {
                let end = text.bytes().position(|byte| byte == b':').unwrap_or(text.len());
                let (name, rest) = text.split_at(end);
                let is_address = name.parse::<Ipv4Addr>().is_ok();
                if !is_address && !name.bytes().all(is_of_a_name) {
                    return None;
                }
                (name, rest, is_address)
            }
        };
        let port = if rest.is_empty() { rest } else { rest.strip_prefix(':')? };
        let is_port = port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
        is_port.then_some(Host { text, name, is_address })
    }
}

/// The characters of a registered name in RFC 3986.
fn is_of_a_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte)
}

/// The names of a node where it asks for no credential, besides every address and `localhost`.
#[derive(Clone, Debug)]
pub(super) struct Hosts(Vec<String>);

impl Hosts {
    pub(super) fn new(names: Vec<String>) -> Hosts {
        Hosts(names)
    }

    /// Whether a request to `host` is meant for this node.
    pub(super) fn admit(&self, host: Host<'_>) -> bool {
        host.is_address
            || host.name.eq_ignore_ascii_case(LOCALHOST)
            || self.0.iter().any(|name| name.eq_ignore_ascii_case(host.name))
    }

    /// What is accepted, for an error.
    pub(super) fn accepted(&self) -> String {
        let names = self.0.iter().map(|name| format!(", {name}"));
        format!("an IP address, {LOCALHOST}{}", names.collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for (text, name) in [
            ("localhost", "localhost"),
            ("10.0.0.1:8001", "10.0.0.1"),
            ("[::1]:8001", "::1"),
            ("[::1]", "::1"),
            ("node-1.example:", "node-1.example"),
            ("", ""),
        ] {
            assert_eq!(Host::parse(text).map(|host| host.name), Some(name), "{text}");
        }
        for text in [
            "a b",
            "a/b",
            "user@a",
            "a:b",
            "a:1:2",
            "::1",
            "[::1",
            "[::1]8001",
            "[a]",
            "a:123456",
            "a,b c",
            "ä",
        ] {
            assert_eq!(Host::parse(text), None, "{text}");
        }
    }

    #[test]
    fn addresses_and_the_nodes_own_names_are_admitted() {
        let hosts = Hosts::new(vec!["node1".into()]);
        for text in ["127.0.0.1", "192.0.2.7:80", "[2001:db8::1]:8001", "LocalHost:1", "node1", "NODE1:8001"]
        {
            assert!(Host::parse(text).is_some_and(|host| hosts.admit(host)), "{text}");
        }
        for text in [
            "",
            "evil.example",
            "node1.evil.example",
            "localhost.",
            "127.0.0.1.evil.example",
            "0x7f.1",
            "1.2.3",
        ] {
            assert!(Host::parse(text).is_some_and(|host| !hosts.admit(host)), "{text}");
        }
    }
}
