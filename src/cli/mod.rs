//! stub
pub mod node;
use clap::{Parser, Subcommand};
/// cli
#[derive(Parser)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}
/// c
#[derive(Subcommand)]
pub enum Command {
    /// node
    Node(crate::config::NodeArgs),
}
/// run
pub async fn run(cli: Cli) -> std::process::ExitCode {
    match cli.command {
        Command::Node(a) => node::run(&a).await,
    }
}
