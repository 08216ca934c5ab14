//! What the bench is asked to do.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use outbox::service::database::DatabaseConfig;

/// Measures Outhook's release binaries, beside the limits of the machine that they run on.
///
/// Starts a private, durable Postgres and RabbitMQ, and sends everything over loopback to a receiver of its
/// own. Everything shares the machine's processors, the load generator included. Ends with 1 if a job was
/// lost, failed or delivered without having been accepted.
#[derive(Parser, Clone, Debug)]
#[command(name = "outhook-bench", version)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Options {
    /// Smaller counts and one repetition: about a minute. Good for ratios, not for publishing.
    #[arg(long)]
    pub quick: bool,
    /// Measure only these.
    #[arg(long, value_enum, value_delimiter = ',', conflicts_with_all = ["growth", "long_transaction", "sick"])]
    pub only: Vec<Part>,
    /// Relays that run.
    #[arg(long, default_value_t = 1, value_parser = count(16))]
    pub relays: u64,
    /// Workers that run.
    #[arg(long, default_value_t = 1, value_parser = count(16))]
    pub workers: u64,
    /// Repetitions of the headline figures; 3, or 1 with --quick.
    #[arg(long, value_parser = count(100))]
    pub repetitions: Option<u64>,
    /// Jobs of an end-to-end run; 50,000, or 5,000 with --quick.
    #[arg(long, value_parser = count(10_000_000))]
    pub jobs: Option<u64>,
    /// Measure instead what a database full of history, future retries and backlog changes.
    #[arg(long, conflicts_with = "long_transaction")]
    pub growth: bool,
    /// With --growth: finished jobs; 5,000,000, or 100,000 with --quick.
    #[arg(long, value_parser = count(100_000_000))]
    pub finished: Option<u64>,
    /// Measure instead what a transaction changes that is held open elsewhere.
    #[arg(long)]
    pub long_transaction: bool,
    /// Measure instead what the others feel of a destination that never answers, under 20,000 webhooks.
    #[arg(long, conflicts_with_all = ["growth", "long_transaction"])]
    pub sick: bool,
    /// With --long-transaction or --sick: seconds of 500 jobs/s under it; 60, or 10 with --quick.
    #[arg(long, value_parser = count(3_600))]
    pub seconds: Option<u64>,
    /// Another setting of the services, to see what it changes: `--set WORKER_CONCURRENCY=256`. They must still
    /// say that they are ready: not `RUST_LOG=warn`.
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    pub set: Vec<(String, String)>,
    /// Another schema, to see what it changes: `--alter "ALTER TABLE webhook_jobs SET (fillfactor = 30)"`.
    #[arg(long, value_name = "SQL", default_value = "", hide_default_value = true)]
    pub alter: String,
    /// Also print the statements that Postgres spends most time in, by `pg_stat_statements`. Costs a little.
    #[arg(long)]
    pub statements: bool,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the report's curves.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Print each figure's ratio to that of an earlier report.
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// Directory of the release binaries; by default that of this program.
    #[arg(long, value_name = "DIRECTORY")]
    pub programs: Option<PathBuf>,
    /// Directory for data and logs, which must not exist; by default one that is removed at the end. On the
    /// disk that is to be measured: in memory a commit costs nothing.
    #[arg(long, value_name = "DIRECTORY")]
    pub directory: Option<PathBuf>,
}

/// What a run measures.
pub(crate) enum Mode {
    /// These parts of the report, in their order.
    Parts(Vec<Part>),
    /// Instead, what a database full of history, future retries and backlog changes.
    Growth,
    /// Instead, what a transaction changes that is held open elsewhere.
    LongTransaction,
    /// Instead, what the others feel of a destination that never answers.
    Sick,
}

/// A part of the report. In this order they are measured: the limits first, for they are what the rest is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// What Postgres, RabbitMQ, an HTTP client and the load generator reach alone.
    Limits,
    /// Accepting alone.
    Ingest,
    /// Accepting and delivering, and what it costs.
    EndToEnd,
    /// The same with two relays and two workers.
    Two,
    /// From accepted to received, at rates below the maximum.
    Latency,
    /// A backlog.
    Drain,
    /// Doing nothing.
    Idle,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is not NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn count(most: u64) -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=most)
}

/// How much is done of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub repetitions: u64,
    pub jobs: u64,
    pub backlog: u64,
    pub ingest: Duration,
    pub latency: Duration,
    pub limit: Duration,
    pub idle: Duration,
}

impl Options {
    pub(crate) fn scale(&self) -> Scale {
        let seconds = |full, quick| Duration::from_secs(if self.quick { quick } else { full });
        let number = |chosen: Option<u64>, full, quick| chosen.unwrap_or(if self.quick { quick } else { full });
        Scale {
            repetitions: number(self.repetitions, 3, 1),
            jobs: number(self.jobs, 50_000, 5_000),
            backlog: number(None, 20_000, 5_000),
            ingest: seconds(10, 2),
            latency: seconds(30, 4),
            limit: seconds(10, 2),
            idle: seconds(10, 5),
        }
    }

    pub(crate) fn finished(&self) -> u64 {
        self.finished.unwrap_or(if self.quick { 100_000 } else { 5_000_000 })
    }

    pub(crate) fn under_transaction(&self) -> Duration {
        Duration::from_secs(self.seconds.unwrap_or(if self.quick { 10 } else { 60 }))
    }

    pub(crate) fn beside_sick(&self) -> Duration {
        self.under_transaction()
    }

    /// No two of the switches come together.
    pub(crate) fn mode(&self) -> Mode {
        match self {
            Self { growth: true, .. } => Mode::Growth,
            Self { long_transaction: true, .. } => Mode::LongTransaction,
            Self { sick: true, .. } => Mode::Sick,
            _ => Mode::Parts(self.parts()),
        }
    }

    /// All parts, or those that `--only` names, in whatever order it does.
    fn parts(&self) -> Vec<Part> {
        let wanted = |part: &Part| self.only.is_empty() || self.only.contains(part);
        Part::value_variants().iter().copied().filter(wanted).collect()
    }
}

#[derive(Parser)]
struct OnlyDatabase {
    #[command(flatten)]
    database: DatabaseConfig,
}

/// A configuration as the services read theirs.
pub(crate) fn database_config(url: &str) -> DatabaseConfig {
    OnlyDatabase::parse_from(["outhook-bench", "--database-url", url]).database
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_is_smaller_unless_told_otherwise() {
        let parse = |arguments: &[&str]| Options::parse_from([&["bench"], arguments].concat());
        assert_eq!(parse(&[]).scale().jobs, 50_000);
        assert_eq!(parse(&["--quick"]).scale().repetitions, 1);
        assert_eq!(parse(&["--quick", "--jobs", "7"]).scale().jobs, 7);
    }

    #[test]
    fn parts_are_measured_in_their_own_order() {
        let parse = |arguments: &[&str]| Options::parse_from([&["bench"], arguments].concat());
        assert_eq!(parse(&[]).parts().first(), Some(&Part::Limits));
        assert_eq!(parse(&["--only", "latency,end-to-end"]).parts(), [Part::EndToEnd, Part::Latency]);
        assert!(matches!(parse(&["--sick"]).mode(), Mode::Sick));
    }
}
