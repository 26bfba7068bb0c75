//! Addresses, sizes and times as people write them.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{ConfigError, bad};

pub(super) fn address(flag: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    check_host_port(flag, text)?;
    Ok(resolved(flag, text)?[0])
}

/// All addresses of `host:port`, at least one.
pub(super) fn resolved(flag: &'static str, text: &str) -> Result<Vec<SocketAddr>, ConfigError> {
    let resolved =
        text.to_socket_addrs().map_err(|error| bad(flag, text, format!("cannot be resolved: {error}")))?;
    let all: Vec<_> = resolved.collect();
    if all.is_empty() { Err(bad(flag, text, "has no address")) } else { Ok(all) }
}

pub(super) fn check_host_port(flag: &'static str, text: &str) -> Result<(), ConfigError> {
    let is_port = |port: &str| port.parse::<u16>().is_ok();
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && is_port(port) && !is_bare_v6(host) => Ok(()),
        _ => Err(bad(flag, text, "must be host:port, for example 127.0.0.1:8001 or [::1]:8001")),
    }
}

/// A host name alone, as it stands in a URL.
pub(super) fn check_host(flag: &'static str, text: &str) -> Result<(), ConfigError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if !text.is_empty() && text.len() <= 253 && text.chars().all(fits) {
        return Ok(());
    }
    Err(bad(flag, text, "must be a host name without scheme or port, for example cache.example"))
}

fn is_bare_v6(host: &str) -> bool {
    host.contains(':') && host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_err()
        || (host.contains(':') && !host.starts_with('['))
}

/// Bytes out of "256MiB", "64KiB", "1GiB", "512Mi", "500MB", "4096B" or a plain number.
pub(super) fn size(flag: &'static str, text: &str) -> Result<usize, ConfigError> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "B" => Some(1),
        "KiB" | "Ki" => Some(1 << 10),
        "MiB" | "Mi" => Some(1 << 20),
        "GiB" | "Gi" => Some(1 << 30),
        "KB" | "kB" => Some(1_000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        _ => None,
    };
    let bytes =
        number.parse::<usize>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    bytes.ok_or_else(|| {
        bad(
            flag,
            text,
            "must be a number of bytes with or without KiB, MiB, GiB (or Ki, Mi, Gi), KB, MB or GB",
        )
    })
}

/// A time out of "500ms", "2s", "1m" or "1h", within bounds.
pub(super) fn duration(
    flag: &'static str,
    text: &str,
    [shortest, longest]: [Duration; 2],
) -> Result<Duration, ConfigError> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit.trim() {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let ms = number.parse::<u64>().ok().zip(unit_ms).and_then(|(number, unit)| number.checked_mul(unit));
    let given = ms.map(Duration::from_millis).filter(|given| (shortest..=longest).contains(given));
    given.ok_or_else(|| {
        let range = format!("from {shortest:?} to {longest:?}");
        bad(flag, text, format!("must be a whole number of ms, s, m or h, {range}"))
    })
}

/// A whole number within bounds.
pub(super) fn count(
    flag: &'static str,
    text: &str,
    range: RangeInclusive<usize>,
) -> Result<usize, ConfigError> {
    let given = text.parse().ok().filter(|given| range.contains(given));
    given.ok_or_else(|| {
        bad(flag, text, format!("must be a whole number from {} to {}", range.start(), range.end()))
    })
}

/// A size within bounds, which are said as `accepted`.
pub(super) fn size_within(
    flag: &'static str,
    text: &str,
    range: RangeInclusive<usize>,
    accepted: &str,
) -> Result<usize, ConfigError> {
    let bytes = size(flag, text)?;
    if range.contains(&bytes) { Ok(bytes) } else { Err(bad(flag, text, format!("must be {accepted}"))) }
}
