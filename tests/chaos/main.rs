//! Breaks a running Outhook at random, from a printed seed, and counts what was lost: `scripts/chaos`.
//!
//! Load flows all the while, with and without ordering keys; people leave cancels open, hold rows and tables, set
//! limits; a receiver falls sick. A watcher looks whether all moves that can. Afterwards everything is healed, the
//! backlog drains, and the checker compares the database with what callers were promised and what the receiver got.
//! Then, on the same system, how long each kind of recovery takes.

mod arena;
mod excuses;
mod faults;
mod gate;
mod load;
mod order;
mod outsiders;
mod plan;
mod recovery;
mod report;
mod verdict;
mod watch;

use std::path::PathBuf;
use std::process::exit;
use std::time::{Duration, Instant};

use clap::Parser;

use crate::arena::Arena;
use crate::plan::Plan;
use crate::report::Report;

/// Breaks a running Outhook at random and counts what was lost. Exits with 1 if anything was.
#[derive(Clone, Debug, Parser)]
#[command(name = "scripts/chaos")]
pub struct Config {
    /// Seconds of faults; what follows until the report takes another minute or two.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// The same seed gives the same faults in the same order; one at random when it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Relays side by side.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    relays: u8,
    /// Workers side by side.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    workers: u8,
    /// Webhooks without an ordering key accepted a second; about 20 with a key come beside them.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rate: u32,
    /// Writes the report as JSON as well.
    #[arg(long)]
    report: Option<PathBuf>,
}

#[tokio::main]
async fn main() {
    let config = Config::parse();
    let seed = config.seed.unwrap_or_else(rand::random);
    eprintln!("chaos: seed {seed}, {} s, {} relays, {} workers", config.seconds, config.relays, config.workers);

    let report = run(&config, seed).await;
    println!("{report}");
    if let Some(path) = &config.report {
        std::fs::write(path, report.to_json()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    exit(i32::from(!report.is_good()));
}

async fn run(config: &Config, seed: u64) -> Report {
    let mut arena = Arena::start(config, seed).await;
    let limit = Duration::from_secs(config.seconds);
    let started = Instant::now();
    for step in Plan::new(seed) {
        if started.elapsed() >= limit {
            break;
        }
        eprintln!("chaos: {:5.1} s  {}", started.elapsed().as_secs_f32(), step.fault.name());
        faults::inject(&mut arena, &step).await;
    }
    let faults_lasted = started.elapsed();
    let drained = arena.heal_and_drain().await;
    let mut report = verdict::judge(&mut arena, seed, faults_lasted, drained).await;
    // What does not end by itself would keep that from its end as well.
    if report.is_drained {
        report.recovery = recovery::measure(&mut arena).await;
        report.violations.extend(arena.check().await);
    }
    report
}
