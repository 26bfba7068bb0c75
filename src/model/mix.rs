//! Owns the one 64-bit mixing function that placement, versions and the store's table share.
//!
//! It is not cryptographic: a table that must stand up to hostile keys gives it a secret seed. Invariant: its
//! results never change, because every node of a cluster, whatever its release, computes the same ring from
//! them.

/// 2^64 divided by the golden ratio, the increment of splitmix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of splitmix64: a bijection in which every input bit flips about half of the output bits.
/// Source: Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators", with the constants
/// of Stafford's variant 13.
pub(crate) const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Hash of `bytes` under `seed`: eight bytes at a time, little endian on every machine, closed by the length
/// so that a zero byte at the end counts.
pub(crate) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut state = mix(seed.wrapping_add(GOLDEN));
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        state = mix(state.wrapping_add(GOLDEN) ^ u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    state = mix(state.wrapping_add(GOLDEN) ^ u64::from_le_bytes(last));
    mix(state ^ bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_is_the_published_splitmix64() {
        // The first outputs of splitmix64 seeded with 0.
        assert_eq!(mix(GOLDEN), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(GOLDEN.wrapping_mul(2)), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn hash_tells_lengths_and_seeds_apart() {
        assert_ne!(hash(0, b""), hash(0, b"\0"));
        assert_ne!(hash(0, b"1234567"), hash(0, b"1234567\0"));
        assert_ne!(hash(0, b"12345678"), hash(1, b"12345678"));
    }

    #[test]
    fn hash_never_changes() {
        // Not a published vector: what the first release computed.
        assert_eq!(hash(0, b"node1"), 0xc09c_7015_8cf5_cca5);
    }
}
