//! The `shoal` command.

use std::process::ExitCode;

/// Keeps resident memory at what the store counts, also with many threads and values of many sizes; its settings are in
/// `.cargo/config.toml`, the measurement in `benches/memory.rs`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    shoal::cli::main()
}
