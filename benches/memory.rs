//! How much memory entries take: `cargo bench --bench memory`.
//!
//! Resident memory as the kernel counts it, in a process of its own for each measurement (this program starts
//! itself again), less what the process takes with an empty store.

use std::{env, error::Error, fs, process::Command, time::Instant};

use bytes::Bytes;
use mimalloc::MiMalloc;
use shoal::model::{Entry, Key, Lookup, Put, Store, StoreConfig, Version};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const MIB: usize = 1 << 20;
const BUDGET: usize = 128 * MIB;
/// Resident memory may be this much more than the budget.
const RATIO_MAX: f64 = 1.10;

type Outcome = Result<(), Box<dyn Error>>;

const CASES: [(&str, fn() -> Outcome); 8] = [
    ("million", million),
    ("million-ttl", million_with_ttl),
    ("small", || bounded("16 B + 64 B", 4 * BUDGET, |_| 64)),
    ("mixed", || bounded("1 B to 16 KiB", 4 * BUDGET, |random| 1 + random % (16 << 10))),
    ("skewed", || {
        bounded("1 B to 1 MiB, most of them short", 4 * BUDGET, |random| {
            (random >> 32) % MIB >> (random % 20)
        })
    }),
    ("large", || bounded("64 KiB to 1 MiB", 8 * BUDGET, |random| (64 << 10) + random % (MIB - (64 << 10)))),
    ("churn", churn),
    ("threads", threads),
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
    let empty = resident()?;
    let start = Instant::now();
    for number in 0..ENTRIES {
        let expires_at_ms = ttl_ms.map(|ttl| ttl + number as u64 / 100);
        store.put_if_newer(&key(number)?, Entry { expires_at_ms, ..entry(number, 64) }, 0)?;
    }
    let took = start.elapsed().as_nanos() as usize / ENTRIES;
    let each = |bytes: usize| bytes as f64 / ENTRIES as f64;
    println!(
        "{name}: {:.1} B resident an entry (redis 7: 174, memcached: 150), {:.1} counted; {took} ns a put",
        each(resident()? - empty),
        each(store.bytes()),
    );
    let start = Instant::now();
    let hits = (0..ENTRIES).filter(|number| hit(&store, number * 7919 % ENTRIES)).count();
    println!("  a get of any took {} ns, {hits} hits", start.elapsed().as_nanos() as usize / ENTRIES);
    Ok(())
}

/// Fills a store with `total` bytes of values of varying sizes.
fn bounded(name: &str, total: usize, size: fn(usize) -> usize) -> Outcome {
    let store = Store::new(config(BUDGET));
    let empty = resident()?;
    let evicted = fill(&store, 0, total, size)?;
    report(name, &store, empty, evicted)
}

/// Short values, then long ones, then short ones again: no page of the allocator stays of use.
fn churn() -> Outcome {
    let store = Store::new(config(BUDGET));
    let empty = resident()?;
    let mut evicted = 0;
    for (round, size) in [40, 3000, 300, 9000, 100, 60_000, 700].into_iter().enumerate() {
        let sizes: [fn(usize) -> usize; 2] = [|random| random % 40, |random| random % 4096];
        evicted += fill_with(&store, round << 32, 2 * BUDGET, |random| size + sizes[round % 2](random))?;
        report(&format!("churn, now of {size} B and more"), &store, empty, evicted)?;
    }
    Ok(())
}

fn threads() -> Outcome {
    let store = Store::new(config(BUDGET));
    let empty = resident()?;
    let sizes = |random: usize| 1 + random % (16 << 10);
    let evicted = std::thread::scope(|scope| {
        let run = |thread: usize| fill(&store, thread << 32, 2 * BUDGET, sizes).unwrap_or(0);
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || run(thread))).collect();
        let evicted = threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum();
        report("1 B to 16 KiB from four threads", &store, empty, evicted).map(|()| evicted)
    });
    evicted.map(|_: usize| ())
}

fn report(name: &str, store: &Store, empty: usize, evicted: usize) -> Outcome {
    let ratio = (resident()? - empty) as f64 / BUDGET as f64;
    let counted = store.bytes() as f64 / BUDGET as f64;
    let verdict = if ratio <= RATIO_MAX { "" } else { " TOO MUCH" };
    println!(
        "{name}: resident ÷ budget {ratio:.3}{verdict}, counted {counted:.3}; {} entries in {} shards, \
         {evicted} evicted",
        store.len(),
        store.shards(),
    );
    Ok(())
}

fn fill(
    store: &Store,
    first: usize,
    total: usize,
    size: fn(usize) -> usize,
) -> Result<usize, Box<dyn Error>> {
    fill_with(store, first, total, size)
}

fn fill_with(
    store: &Store,
    first: usize,
    total: usize,
    size: impl Fn(usize) -> usize,
) -> Result<usize, Box<dyn Error>> {
    let (mut filled, mut evictions, mut random) = (0, 0, first as u64 + 1);
    for number in first.. {
        if filled >= total {
            break;
        }
        // xorshift64 (Marsaglia 2003): the same sizes each time.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let bytes = size(random as usize >> 1);
        if let Put::Stored { evicted, .. } = store.put_if_newer(&key(number)?, entry(number, bytes), 0)? {
            evictions += evicted.entries;
        }
        filled += bytes + 16;
    }
    Ok(evictions)
}

fn config(memory_bytes_max: usize) -> StoreConfig {
    StoreConfig { memory_bytes_max, value_bytes_max: MIB, hash_seed: 0x5eed }
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
        expires_at_ms: None,
    }
}

fn hit(store: &Store, number: usize) -> bool {
    key(number).is_ok_and(|key| matches!(store.get(&key, 0), Lookup::Hit(_)))
}

/// Resident bytes of this process: the second number of `/proc/self/statm`, in pages of 4 KiB.
fn resident() -> Result<usize, Box<dyn Error>> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages: usize = statm.split(' ').nth(1).ok_or("statm has no second field")?.parse()?;
    Ok(pages * 4096)
}
