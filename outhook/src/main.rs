//! `outhook`: all of Outhook's programs, of which each process is one.

mod commands;

use std::env::args_os;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::{CommandFactory, Parser, Subcommand};
use outbox::service::env;

/// Sends webhooks that are committed in Postgres, by way of RabbitMQ.
///
/// Each command is a process of its own, with its own settings: `outhook COMMAND --help` shows them. A link to this program that
/// is named `outhook-COMMAND` is that command.
#[derive(Parser)]
#[command(name = "outhook", version, disable_help_subcommand = true, arg_required_else_help = false)]
struct Outhook {
    #[command(subcommand)]
    command: Command,
}

/// The order is that of `--help`: a webhook's way, then what people run.
#[derive(Clone, Copy, Subcommand)]
enum Command {
    /// Accepts webhooks.
    Api,
    /// Publishes what is due to RabbitMQ.
    Relay,
    /// Delivers webhooks.
    Worker,
    /// Brings the database schema to the version of this build, then exits.
    Migrate,
    /// Checks the invariants of a running Outhook's database.
    Check,
    /// A webhook endpoint to try things with: prints and verifies what it gets.
    Receiver,
    /// Asks a process on this machine whether it is well.
    Health,
}

fn main() -> anyhow::Result<()> {
    match command() {
        Command::Api => commands::api::run(),
        Command::Relay => commands::relay::run(),
        Command::Worker => commands::worker::run(),
        Command::Migrate => commands::migrate::run(),
        Command::Check => commands::check::run(),
        Command::Receiver => return commands::receiver::run(),
        Command::Health => commands::health::run(),
    }
    Ok(())
}

/// Which one is meant, by the name of the link that was called or else by the first argument. What follows is the command's.
fn command() -> Command {
    let mut arguments = args_os();
    let called = arguments.next();
    if let Some(command) = called.as_deref().and_then(by_link) {
        return command;
    }
    let first: Vec<OsString> = called.into_iter().chain(arguments.next()).collect();
    match Outhook::try_parse_from(first) {
        Ok(outhook) => outhook.command,
        Err(shown) if !shown.use_stderr() => shown.exit(), // --help and --version
        Err(_) => env::refuse::<Outhook>(format_args!("the first argument must be one of: {}; see --help", names())),
    }
}

fn by_link(called: &OsStr) -> Option<Command> {
    let name = Path::new(called).file_name()?.to_str()?.strip_prefix("outhook-")?;
    Some(Outhook::try_parse_from(["outhook", name]).ok()?.command)
}

fn names() -> String {
    let outhook = Outhook::command();
    outhook.get_subcommands().map(clap::Command::get_name).collect::<Vec<_>>().join(", ")
}
