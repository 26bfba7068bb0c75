//! Owns what an entry costs: how many bytes an allocation or a table really takes.
//!
//! A model of the allocator and of the table, not a measurement: `benches/memory.rs` holds it against
//! resident memory. Invariant: it never says less than is taken.

/// Bytes that an allocation of `len` takes in mimalloc 3.3, the process's allocator.
///
/// Source: `mi_bin` in `src/page-queue.c`: steps of 16 bytes up to 64, then four sizes to each doubling; what
/// is larger than 512 KiB (`MI_LARGE_MAX_OBJ_SIZE` in `include/mimalloc/types.h`) has whole slices of 64 KiB.
/// The rest at the end of a page that holds no further block is shared among the blocks of the page.
pub(super) const fn allocated(len: usize) -> usize {
    if len == 0 {
        return 0;
    }
    if len <= 64 {
        return len.next_multiple_of(16);
    }
    if len > 512 * KIB {
        return len.next_multiple_of(SLICE);
    }
    let step = 1 << ((len - 1).ilog2() - 2);
    let block = len.next_multiple_of(step);
    // A page loses a sixth of itself at most; that decides how large a page a block gets.
    let page = if block <= (SLICE - 4 * KIB) / 6 {
        SLICE
    } else if block <= (8 * SLICE - 4 * KIB) / 6 {
        8 * SLICE
    } else {
        64 * SLICE
    };
    page / (page / block)
}

const KIB: usize = 1024;
const SLICE: usize = 64 * KIB;
/// Bytes of an entry of the expiry index besides its key: 24 in a node of the tree, which is at least five
/// elevenths full, and its share of the nodes above. Source: `alloc::collections::btree::node`, B = 6: leaves
/// of 288 bytes (320 allocated) with 5 to 11 entries, inner nodes of 384.
pub(super) const EXPIRY: usize = 80;

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
        // Worked out by hand from `mi_bin`; below 8 KiB a page's rest is less than a block's rounding.
        for (len, taken) in [(0, 0), (1, 16), (16, 16), (17, 32), (64, 64), (65, 80), (94, 96), (97, 112)] {
            assert_eq!(allocated(len), taken, "{len}");
        }
        // 12 blocks of 5120 in a page of 65536.
        assert_eq!(allocated(5000), 5461);
        assert_eq!(allocated(600 * KIB), 640 * KIB);
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
