//! `outhook check`: asks a running Outhook's database whether it kept its promises.

use std::fmt::Arguments;
use std::io::{Write, stdout};
use std::process::exit;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use outbox::service::database::DatabaseConfig;
use outbox::service::env;
use outbox::service::telemetry::say;
use outhook_check::{ALWAYS, AT_REST, Bounds, begin_snapshot, check, invariants, sees_all_sessions};

/// Status when an invariant does not hold, and when that could not be found out.
const VIOLATED: i32 = 1;
const NOT_CHECKED: i32 = 2;

/// Checks the invariants of Outhook's tables: prints a line for each, with the rows that break it.
///
/// Reads only, in one snapshot, so it may run against a system under load; it reads whole tables. Exits with
/// 0 when all hold, 1 when one does not, 2 when they cannot be checked.
#[derive(Parser)]
#[command(name = "outhook-check", version)]
struct Config {
    #[command(flatten)]
    database: DatabaseConfig,
    /// Nothing is under way: every job must be finished as well.
    #[arg(long)]
    at_rest: bool,
    /// Seconds that a row may be overdue, or a session idle in a transaction.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    overdue_sec: u64,
    /// The workers' `MAX_RETRIES`, to check the attempts of jobs that do not have their own limit.
    #[arg(long, env, value_parser = clap::value_parser!(u32).range(1..=100))]
    max_retries: Option<u32>,
    /// Seconds that one statement may take.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout_sec: u64,
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run() {
    let config: Config = env::read();
    match check_all(&config).await {
        Ok(true) => exit(0),
        Ok(false) => exit(VIOLATED),
        Err(error) => {
            say(format_args!("outhook-check: {}", env::with_causes(&*error)));
            exit(NOT_CHECKED)
        }
    }
}

/// Whether everything holds.
async fn check_all(config: &Config) -> anyhow::Result<bool> {
    let mut connection = config.database.connect_alone("outhook-check").await?;
    begin_snapshot(&mut connection, Duration::from_secs(config.timeout_sec)).await.context("cannot begin")?;
    ensure!(
        sees_all_sessions(&mut connection).await.context("cannot look at the sessions")?,
        "cannot see what other sessions do: connect as a member of outhook_reader, or GRANT pg_read_all_stats to this user"
    );

    let bounds = Bounds { overdue: Duration::from_secs(config.overdue_sec), max_retries: config.max_retries };
    let files = if config.at_rest { vec![ALWAYS, AT_REST] } else { vec![ALWAYS] };
    let mut holds = true;
    for invariant in files.into_iter().flat_map(invariants) {
        match check(&mut connection, invariant, bounds).await.context(invariant.sentence)? {
            None => print(format_args!("ok        {}", invariant.sentence)),
            Some(violation) => {
                holds = false;
                print(format_args!("VIOLATED  {violation}"));
            }
        }
    }
    Ok(holds)
}

/// A line of the verdict. Whoever reads only some of it, as `head` does, still gets the whole in the status.
fn print(line: Arguments<'_>) {
    let _ = writeln!(stdout(), "{line}");
}
