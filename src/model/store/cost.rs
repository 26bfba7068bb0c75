//! Owns what an entry costs: how many bytes an allocation or a table really takes.
//!
//! A model of the allocator and of the table, not a measurement: `benches/memory.rs` holds it against
//! resident memory. Invariant: it never says less than is taken.

/// Bytes that an allocation of `len` takes in jemalloc 5.3, the process's allocator.
///
/// Source: "size classes" in jemalloc(3): steps of 16 bytes up to 128, then four sizes to each doubling. From 16 KiB on an
/// allocation has pages of its own, of which those that are written count as resident.
pub(super) const fn allocated(len: usize) -> usize {
    match len {
        0 => 0,
        1..=64 => len.next_multiple_of(16),
        LARGE.. => len.next_multiple_of(4 << 10),
        _ => len.next_multiple_of(1 << ((len - 1).ilog2() - 2)),
    }
}

const LARGE: usize = (14 << 10) + 1;

/// Bytes of an entry of the expiry index besides its key: 24 in a node of the tree, which is at least five
/// elevenths full, and its share of the nodes above. Source: `alloc::collections::btree::node`, B = 6: leaves
/// of 288 bytes (320 allocated) with 5 to 11 entries, inner nodes of 384.
pub(super) const EXPIRY: usize = 80;

/// Bytes of a tombstone whose key has `key` bytes: the key with its two counts, shared by a node of the tree by key and one of
/// the order of ends. In the former an entry is 40 bytes: leaves of 456 bytes (512 allocated), inner nodes of 552 (640), and at
/// the least 5 entries in each: (512 + 640 / 5) / 6.
pub(super) const fn tombstone(key: usize) -> usize {
    const BY_KEY: usize = 112;
    allocated(key + 2 * size_of::<usize>()) + BY_KEY + EXPIRY
}

/// Buckets that a table of `hashbrown` has when it is made for `len` entries.
///
/// Source: `capacity_to_buckets` in `src/raw.rs` of 0.17: an eighth of them stays empty, one at least.
pub(super) const fn buckets_for(len: usize) -> usize {
    match len {
        0 => 0,
        1..4 => 4,
        4..8 => 8,
        8..15 => 16,
        len => (len * 8 / 7).next_power_of_two(),
    }
}

/// How many entries that many buckets take before the table grows. Source: `bucket_mask_to_capacity`.
pub(super) const fn capacity(buckets: usize) -> usize {
    match buckets {
        0 => 0,
        1..=8 => buckets - 1,
        buckets => buckets / 8 * 7,
    }
}

/// Bytes of a table: two pointers and a control byte for each bucket, and a group of 16 control bytes.
pub(super) const fn table(buckets: usize) -> usize {
    match buckets {
        0 => 0,
        buckets => allocated(buckets * 17 + 16),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn sizes_are_those_of_the_allocator() {
        // From the table in jemalloc(3).
        let table =
            [(0, 0), (1, 16), (16, 16), (17, 32), (64, 64), (65, 80), (94, 96), (97, 112), (129, 160)];
        for (len, taken) in table.into_iter().chain([(5000, 5120), (600_000, 602_112)]) {
            assert_eq!(allocated(len), taken, "{len}");
        }
    }

    #[test]
    fn an_allocation_never_takes_less_than_its_length_nor_a_third_more() {
        for len in 65..1_000_000 {
            assert!((len..=len + len / 3).contains(&allocated(len)), "{len}: {}", allocated(len));
        }
    }

    #[test]
    fn tables_are_those_of_hashbrown() {
        // The standard library's map is hashbrown's.
        for len in 1..100_000 {
            let real = HashMap::<usize, usize>::with_capacity(len);
            assert_eq!(real.capacity(), capacity(buckets_for(len)), "{len}");
        }
    }
}
