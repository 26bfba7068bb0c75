//! The `shoal` command.

use std::process::ExitCode;

use clap::Parser;
use shoal::cli::{self, Cli};

/// Keeps a small entry in fewer bytes than the system's allocator; measured in `benches/memory.rs`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    cli::run(Cli::parse()).await
}
