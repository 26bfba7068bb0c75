//! What strangers can send, as functions of bytes: for cargo-fuzz (`tests/fuzz`, with the feature `fuzzing`), and for the
//! seeded test below, which runs with all others.
//!
//! Each takes any bytes and must come back; what must hold besides is asserted inside.

/// One thing that takes bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// The name of its binary in `tests/fuzz`.
    pub name: &'static str,
    /// Takes the bytes.
    pub run: fn(&[u8]),
    /// Bytes that mean something to it.
    pub corpus: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 5] = [
    Target { name: "gossip", run: crate::gossip::fuzz::gossip, corpus: crate::gossip::fuzz::corpus },
    Target { name: "link", run: crate::link::fuzz::link, corpus: crate::link::fuzz::corpus },
    Target { name: "batch", run: crate::http::fuzz::batch, corpus: crate::http::fuzz::corpus },
    Target { name: "request", run: crate::http::fuzz::request, corpus: crate::http::fuzz::corpus },
    Target { name: "config", run: crate::config::fuzz::config, corpus: crate::config::fuzz::corpus },
];

/// Runs the target of this name.
///
/// # Panics
/// When there is none, or what must hold does not.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    (target.run)(bytes);
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, RngExt, SeedableRng};

    use super::*;

    /// Changed inputs of each target.
    const INPUTS: u64 = 20_000;

    fn changed(corpus: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
        let mut bytes = corpus[random.random_range(0..corpus.len())].clone();
        for _ in 0..random.random_range(0..8) {
            let at = random.random_range(0..=bytes.len());
            match random.random_range(0..6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
                1 if at < bytes.len() => {
                    bytes[at] = [0, 0xff, b'0', b'"', b'{', 0x7f][random.random_range(0..6)];
                }
                2 => bytes.truncate(at),
                3 => {
                    let mut noise = vec![0; random.random_range(0..16)];
                    random.fill_bytes(&mut noise);
                    drop(bytes.splice(at..at, noise));
                }
                4 => {
                    let other = &corpus[random.random_range(0..corpus.len())];
                    let from = random.random_range(0..=other.len());
                    drop(bytes.splice(at.., other[from..].iter().copied()));
                }
                _ => {
                    let part = bytes[at..].to_vec();
                    bytes.extend(part);
                }
            }
            bytes.truncate(1 << 14);
        }
        bytes
    }

    #[test]
    fn no_bytes_bring_anything_to_a_panic() {
        for target in TARGETS {
            let corpus = (target.corpus)();
            assert!(!corpus.is_empty());
            for bytes in &corpus {
                (target.run)(bytes);
            }
            for seed in 0..INPUTS {
                let bytes = changed(&corpus, &mut StdRng::seed_from_u64(seed));
                let outcome = std::panic::catch_unwind(|| (target.run)(&bytes));
                assert!(outcome.is_ok(), "{} with seed {seed}: {bytes:?}", target.name);
            }
        }
    }
}
