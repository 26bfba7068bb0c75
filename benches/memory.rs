//! How much memory entries take: `cargo bench --bench memory`.
//!
//! Resident memory as the kernel counts it, in a process of its own for each measurement (this program starts
//! itself again), less what the process takes with an empty store. Last, whole nodes that are filled over HTTP.

#[path = "common/mod.rs"]
mod common;

use std::{
    env,
    error::Error,
    fs,
    process::Command,
    sync::Barrier,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::json;
use shoal::model::{Entry, Expiry, Key, Lookup, Record, Store, StoreConfig, Tombstone, Version};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const MIB: usize = 1 << 20;
const BUDGET: usize = 128 * MIB;
/// Resident memory may be this much more than the budget.
const RATIO_MAX: f64 = 1.10;

type Outcome = Result<(), Box<dyn Error>>;

/// A name to choose it by, and what it runs.
type Case = (&'static str, fn() -> Outcome);

const CASES: [Case; 12] = [
    ("million", million),
    ("million-ttl", million_with_ttl),
    ("tombstones", tombstones),
    ("small", || bounded("16 B + 64 B", 4 * BUDGET, |_| 64)),
    ("mixed", || bounded("1 B to 16 KiB", 4 * BUDGET, |random| 1 + random % (16 << 10))),
    ("skewed", || {
        bounded("1 B to 1 MiB, most of them short", 4 * BUDGET, |random| {
            ((random >> 32) % MIB) >> (random % 20)
        })
    }),
    ("large", || bounded("64 KiB to 1 MiB", 8 * BUDGET, |random| (64 << 10) + random % (MIB - (64 << 10)))),
    ("churn", churn),
    ("threads", threads),
    ("node-small", || node("64 B", |_| 64)),
    ("node-1000", || node("1000 B", |_| 1000)),
    ("node-mixed", || node("1 B to 16 KiB", |random| 1 + random % (16 << 10))),
];

fn main() -> Outcome {
    let wanted = env::args().skip(1).find(|argument| !argument.starts_with('-'));
    if let Some(run) = env::var("SHOAL_MEMORY_CASE").ok().and_then(|name| find(&name)) {
        return run();
    }
    for (name, _) in CASES.iter().filter(|(name, _)| wanted.as_deref().is_none_or(|wanted| *name == wanted)) {
        Command::new(env::current_exe()?).env("SHOAL_MEMORY_CASE", name).status()?;
    }
    Ok(())
}

fn find(name: &str) -> Option<fn() -> Outcome> {
    CASES.iter().find(|(case, _)| *case == name).map(|(_, run)| *run)
}

fn million() -> Outcome {
    million_entries("1 M entries of 16 B + 64 B", None)
}

fn million_with_ttl() -> Outcome {
    million_entries("the same, each with a TTL", Some(3_600_000))
}

fn million_entries(name: &str, ttl_ms: Option<u64>) -> Outcome {
    const ENTRIES: usize = 1_000_000;
    let store = Store::new(config(1024 * MIB));
    let empty = resident("self")?;
    let start = Instant::now();
    for number in 0..ENTRIES {
        let expiry = |ttl_ms| Expiry { at_ms: ttl_ms + number as u64 / 100, remembered_ms: 0 };
        store.put_if_newer(
            &key(number)?,
            Record::Entry(Entry { expiry: ttl_ms.map(expiry), ..entry(number, 64) }),
            0,
        )?;
    }
    let took = start.elapsed().as_nanos() as usize / ENTRIES;
    let each = |bytes: usize| bytes as f64 / ENTRIES as f64;
    println!(
        "{name}: {:.1} B resident an entry (redis 7: 174, memcached: 150), {:.1} counted; {took} ns a put",
        each(resident("self")? - empty),
        each(store.bytes()),
    );
    let start = Instant::now();
    let hits = (0..ENTRIES).filter(|number| hit(&store, number * 7919 % ENTRIES)).count();
    println!("  a get of any took {} ns, {hits} hits", start.elapsed().as_nanos() as usize / ENTRIES);
    Ok(())
}

/// Deletes far beyond the part of the memory that is for them, so that they come and go.
fn tombstones() -> Outcome {
    let store = Store::new(config(1024 * MIB));
    let empty = resident("self")?;
    for number in 0..1_000_000_u64 {
        let (version, now_ms) = (Version::new(number, 1), number / 100);
        let tombstone = Tombstone { version, expires_at_ms: now_ms + Tombstone::LIFE_MS };
        // Keys of no order: 2^64 divided by the golden ratio, the multiplier of Fibonacci hashing (Knuth 1973).
        let key = key(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize)?;
        store.put_if_newer(&key, Record::Tombstone(tombstone), now_ms)?;
    }
    let kept = store.tombstones();
    let each = |bytes: usize| bytes as f64 / kept as f64;
    println!(
        "{kept} tombstones with keys of 16 B: {:.1} B resident each, {:.1} counted",
        each(resident("self")? - empty),
        each(store.bytes()),
    );
    Ok(())
}

/// Fills a store with `total` bytes of values of varying sizes.
fn bounded(name: &str, total: usize, size: fn(usize) -> usize) -> Outcome {
    let store = Store::new(config(BUDGET));
    let empty = resident("self")?;
    fill(&store, 0, total, size)?;
    report(name, &store, empty, size)
}

/// Short values, then long ones, then short ones again: the allocator's pages for one are of no use to the
/// next.
fn churn() -> Outcome {
    const SIZES: [fn(usize) -> usize; 7] = [
        |random| 40 + random % 40,
        |random| 3000 + random % 4096,
        |random| 300 + random % 40,
        |random| 9000 + random % 4096,
        |random| 100 + random % 40,
        |random| 60_000 + random % 4096,
        |random| 700 + random % 40,
    ];
    let store = Store::new(config(BUDGET));
    let empty = resident("self")?;
    for (round, size) in SIZES.into_iter().enumerate() {
        fill(&store, round << 32, 2 * BUDGET, size)?;
        report(&format!("churn, now of {} B and more", size(0)), &store, empty, size)?;
    }
    Ok(())
}

/// Each thread has pages of its own and keeps them while it lives, so they wait until all is measured.
fn threads() -> Outcome {
    const THREADS: usize = 4;
    let store = Store::new(config(BUDGET));
    let empty = resident("self")?;
    let size: fn(usize) -> usize = |random| 1 + random % (16 << 10);
    let (filled, measured) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    let run = |thread: usize| {
        let done = fill(&store, thread << 32, BUDGET, size).map_err(|error| error.to_string());
        filled.wait();
        measured.wait();
        done
    };
    thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (1..=THREADS).map(|thread| scope.spawn(move || run(thread))).collect();
        filled.wait();
        let outcome = report("1 B to 16 KiB from four threads", &store, empty, size);
        measured.wait();
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        outcome
    })
}

/// A node with a budget of 128 MiB takes four times as much in batches over four connections.
fn node(name: &str, size: fn(usize) -> usize) -> Outcome {
    const CONNECTIONS: usize = 4;
    let node = common::Node::start(common::SHOAL, "memory", "127.0.0.1:0", &["--max-memory", "128MiB"])?;
    let process = node.process.0.id().to_string();
    let empty = resident(&process)?;
    let put = &|connection: usize| -> Result<(), String> {
        let (mut filled, mut random) = (0, connection + 1);
        while filled < 4 * BUDGET / CONNECTIONS {
            let (mut operations, mut bytes) = (Vec::new(), 0);
            while operations.len() < 1000 && bytes < MIB {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let value = "v".repeat(size(random >> 1));
                bytes += value.len() + 16;
                operations.push(json!({"op": "put", "key": format!("{random:016x}"), "value": value}));
            }
            filled += bytes;
            let body = json!({"operations": operations}).to_string();
            match common::http(node.address, "POST", "/api/v1/batch", &body) {
                Ok((200, _)) => {}
                other => return Err(format!("a batch came back with {other:?}")),
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let connections: Vec<_> = (0..CONNECTIONS).map(|number| scope.spawn(move || put(number))).collect();
        connections.into_iter().try_for_each(|put| put.join().map_err(|_| "a thread panicked".to_string())?)
    })?;
    let ratio = (resident(&process)? - empty) as f64 / BUDGET as f64;
    let verdict = if ratio <= RATIO_MAX { "" } else { " TOO MUCH" };
    println!(
        "a node filled with values of {name}: resident ÷ budget {ratio:.3}{verdict}; {} MiB empty",
        empty / MIB
    );
    Ok(())
}

/// Resident memory at once, and after some seconds with a trickle of writes, in which an allocator that keeps freed memory
/// for a while would give it back.
fn report(name: &str, store: &Store, empty: usize, size: fn(usize) -> usize) -> Outcome {
    let ratio = || resident("self").map(|bytes| bytes.saturating_sub(empty) as f64 / BUDGET as f64);
    let at_once = ratio()?;
    for pause in 1..=8 {
        sleep(Duration::from_millis(300));
        fill(store, (1 << 60) + (pause << 32), BUDGET / 256, size)?;
    }
    let settled = ratio()?;
    let verdict = if settled <= RATIO_MAX { "" } else { " TOO MUCH" };
    println!(
        "{name}: resident ÷ budget {at_once:.3} at once, {settled:.3} settled{verdict}; {:.3} counted, \
         {} entries in {} shards",
        store.bytes() as f64 / BUDGET as f64,
        store.len(),
        store.shards(),
    );
    Ok(())
}

fn fill(store: &Store, first: usize, total: usize, size: fn(usize) -> usize) -> Outcome {
    let (mut filled, mut random) = (0, first as u64 + 1);
    for number in first.. {
        if filled >= total {
            break;
        }
        // xorshift64 (Marsaglia 2003): the same sizes each time.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let bytes = size(random as usize >> 1);
        store.put_if_newer(&key(number)?, Record::Entry(entry(number, bytes)), 0)?;
        filled += bytes + 16;
    }
    Ok(())
}

fn config(resident_bytes_max: usize) -> StoreConfig {
    StoreConfig::for_resident(resident_bytes_max, MIB, 0x5eed)
}

/// Sixteen bytes.
fn key(number: usize) -> Result<Key, Box<dyn Error>> {
    Ok(Key::parse(format!("{number:016x}"))?)
}

fn entry(number: usize, bytes: usize) -> Entry {
    Entry {
        value: Bytes::from(vec![b'v'; bytes]),
        content_type: None,
        version: Version::new(number as u64, 1),
        expiry: None,
    }
}

fn hit(store: &Store, number: usize) -> bool {
    key(number).is_ok_and(|key| matches!(store.get(&key, 0), Lookup::Hit(_)))
}

/// Resident bytes of this process: the second number of `/proc/self/statm`, in pages of 4 KiB.
fn resident(process: &str) -> Result<usize, Box<dyn Error>> {
    let statm = fs::read_to_string(format!("/proc/{process}/statm"))?;
    let pages: usize = statm.split(' ').nth(1).ok_or("statm has no second field")?.parse()?;
    Ok(pages * 4096)
}
