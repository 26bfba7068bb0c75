//! Where a node listens, and which address others are told.
//!
//! Invariant: an address that others are told is of a family that the node listens for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use super::units::{address, check_host, check_host_port, resolved};
use super::{ConfigError, bad, host_name};

/// Where a node listens if no port is named.
const PORT: u16 = 8001;
/// What stands for the address of the route towards the seeds.
const AUTO: &str = "auto";
/// Documentation prefixes (RFC 5737, RFC 3849): nothing is sent there, only the route is asked for.
const FAR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// The address to listen on with its port: `:8001` is every IPv4 address, and a host alone has the usual port.
pub(super) fn complete(listen: &str) -> String {
    let bare = listen.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return SocketAddr::new(ip, PORT).to_string();
    }
    if listen.starts_with(':') {
        return format!("{}{listen}", Ipv4Addr::UNSPECIFIED);
    }
    // A number alone is left as it is: the error then asks for host and port.
    let is_name = check_host("listen", listen).is_ok() && listen.contains(|c: char| c.is_ascii_alphabetic());
    if is_name { format!("{listen}:{PORT}") } else { listen.to_string() }
}

/// Where to listen.
pub(super) fn listen(text: &str) -> Result<SocketAddr, ConfigError> {
    address("listen", &complete(text))
}

/// What others are told; none is the address that the node listens on. Port 0 is the real one of the listener.
pub(super) fn advertised(
    text: Option<&str>,
    listen: SocketAddr,
    seeds: &[String],
) -> Result<Option<SocketAddr>, ConfigError> {
    match text {
        None if !listen.ip().is_unspecified() => Ok(None),
        None | Some(AUTO) => Ok(Some(SocketAddr::new(towards(listen, seeds)?, 0))),
        Some(text) => told(text, listen).map(Some),
    }
}

/// An address that was given, or the first one of a name that something can listen on.
fn told(text: &str, listen: SocketAddr) -> Result<SocketAddr, ConfigError> {
    check_host_port("advertise", text)?;
    let all = resolved("advertise", text)?;
    let Some(usable) = all.iter().find(|one| listens_for(listen, one.ip())) else {
        let found = all.iter().map(|one| one.ip().to_string()).collect::<Vec<_>>().join(", ");
        return Err(bad(
            "advertise",
            text,
            format!("is {found}, and a node that listens on {listen} is not there"),
        ));
    };
    if usable.ip().is_unspecified() || usable.port() == 0 {
        return Err(bad(
            "advertise",
            text,
            format!("others could not reach that; name an address and port, or {AUTO}"),
        ));
    }
    Ok(*usable)
}

/// Whether a socket that is bound there gets what is sent to an address of this family.
fn listens_for(listen: SocketAddr, ip: IpAddr) -> bool {
    listen.is_ipv4() == ip.is_ipv4() || listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
}

/// The address of this machine from which it reaches the seeds, or if no route to them is known yet, anything at all.
fn towards(listen: SocketAddr, seeds: &[String]) -> Result<IpAddr, ConfigError> {
    if !listen.ip().is_unspecified() {
        return Ok(listen.ip());
    }
    let known = seeds.iter().filter_map(|seed| seed.to_socket_addrs().ok()).flatten();
    // A name that resolves to loopback may be this node's own: no other machine reaches that address.
    let (near, seeds): (Vec<_>, Vec<_>) = known.partition(|seed| seed.ip().is_loopback());
    let far = FAR.map(|ip| SocketAddr::new(ip, PORT));
    let own = (host_name(), PORT).to_socket_addrs().into_iter().flatten().map(|own| own.ip());
    let mut routes =
        seeds.into_iter().chain(far).filter_map(source).chain(own.filter(|ip| !ip.is_loopback()));
    let found = routes.find(|ip| listens_for(listen, *ip));
    let is_near = |seed: &SocketAddr| listens_for(listen, seed.ip());
    found.or_else(|| near.iter().find(|seed| is_near(seed)).map(SocketAddr::ip)).ok_or_else(|| {
        let reason = "listens on every address, and none of this machine's leads anywhere: add --advertise HOST:PORT with \
                      the one that others can reach";
        bad("listen", &listen.to_string(), reason)
    })
}

/// The address from which this machine would send something there.
fn source(to: SocketAddr) -> Option<IpAddr> {
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|from| from.ip()).filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_of_an_address_to_listen_on_is_the_usual() {
        for (given, whole) in [
            (":9001", "0.0.0.0:9001"),
            ("0.0.0.0", "0.0.0.0:8001"),
            ("::", "[::]:8001"),
            ("[::1]", "[::1]:8001"),
            ("node1", "node1:8001"),
            ("node1.example:9001", "node1.example:9001"),
            ("8001", "8001"),
            ("", ""),
        ] {
            assert_eq!(complete(given), whole);
        }
    }

    #[test]
    fn only_what_is_listened_for_is_told() {
        let listen = |text: &str| text.parse::<SocketAddr>().unwrap();
        let told =
            |text: &str, at: &str| advertised(Some(text), listen(at), &[]).map_err(|error| error.to_string());
        assert_eq!(told("10.0.0.5:7", "0.0.0.0:8001").unwrap(), Some(listen("10.0.0.5:7")));
        assert_eq!(told("10.0.0.5:7", "[::]:8001").unwrap(), Some(listen("10.0.0.5:7")));
        let error = told("[fd00::5]:7", "0.0.0.0:8001").unwrap_err();
        assert!(
            error.contains("is fd00::5, and a node that listens on 0.0.0.0:8001 is not there"),
            "{error}"
        );
        assert!(told("0.0.0.0:8001", "0.0.0.0:8001").unwrap_err().contains("or auto"));
        assert_eq!(advertised(None, listen("10.0.0.5:8001"), &[]).unwrap(), None);
        assert_eq!(told("auto", "10.0.0.5:8001").unwrap(), Some(listen("10.0.0.5:0")));
    }

    #[test]
    fn a_seed_on_this_machine_is_reached_by_loopback() {
        assert_eq!(source("127.0.0.1:1".parse().unwrap()), Some(Ipv4Addr::LOCALHOST.into()));
    }
}
