//! `outhook-bench`: measures Outhook as it would run, beside the limits of the machine.
//!
//! In the order of reading: [`options`] say what is wanted, [`stack`] runs the real binaries on the real
//! [`servers`], [`load`] posts to them and [`receiver`] takes what they deliver; [`limits`] and [`mod@phases`]
//! are what is measured, [`report`] is how it is shown. docs/performance.md says what each figure means.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is run by hand, where somebody reads it")]

mod distribution;
mod http;
mod limits;
mod load;
mod options;
mod phases;
mod process_time;
mod progress;
mod receiver;
mod report;
mod servers;
mod services;
mod stack;
mod usage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::options::{Mode, Options, Part};
use crate::phases::end_to_end::Setup;
use crate::phases::{Bench, drain, end_to_end, growth, idle, ingest, latency, long_transaction, sick, statements};
use crate::progress::Progress;
use crate::receiver::{Receiver, Role};
use crate::report::machine::Machine;
use crate::report::{Report, compare, svg, table};
use crate::servers::{Servers, workspace};
use crate::stack::Site;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    // Fails when it was done before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Whoever interrupts drops the run, and with it every process that it started.
    let outcome = tokio::select! {
        outcome = run(&options) => outcome,
        () = interrupted() => Err(anyhow::anyhow!("interrupted")),
    };
    match outcome {
        Ok(report) if report.violations.is_empty() => ExitCode::SUCCESS,
        Ok(report) => {
            eprintln!("outhook-bench: {} things that must hold do not; they are above", report.violations.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("outhook-bench: {}", outbox::service::env::with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn interrupted() {
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    if let (Ok(mut interrupt), Ok(mut terminate)) = (interrupt, terminate) {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

async fn run(options: &Options) -> anyhow::Result<Report> {
    // Before minutes of work: an earlier report that cannot be read, binaries that are not there.
    let earlier = options.compare.as_deref().map(compare::read).transpose()?;
    let programs = programs(options)?;
    let directory = Directory::create(options.directory.clone())?;

    let postgres_options = if options.statements { statements::POSTGRES_OPTIONS } else { "" };
    eprintln!("bench: starting Postgres and RabbitMQ in {}", directory.path.display());
    let servers = Servers::start(&directory.path.join("servers"), postgres_options).await?;
    let report = measure(options, &servers, programs, &directory.path).await;
    servers.stop().await?;
    let report = match report {
        Ok(report) => report,
        Err(error) => return Err(error.context(format!("the logs are in {}", directory.keep().display()))),
    };

    println!("{}", table::render(&report));
    if let Some(earlier) = earlier {
        println!("{}", compare::render(&report, &earlier));
    }
    write_files(options, &report)?;
    Ok(report)
}

async fn measure(options: &Options, servers: &Servers, programs: PathBuf, directory: &Path) -> anyhow::Result<Report> {
    let machine = Machine::look_at(directory, &servers.connect("outhook").await?).await?;
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let mut report = Report::new(machine, command);
    let logs = directory.join("log");
    std::fs::create_dir(&logs)?;
    let receiver = Receiver::start(Role::Deliveries).await?;
    let site = Site {
        servers,
        receiver: &receiver,
        programs,
        logs,
        settings: options.set.clone(),
        alter: options.alter.clone(),
    };
    let bench = Bench { site, options, scale: options.scale(), progress: Progress::new(steps(options)) };
    phases(&bench, &mut report).await?;
    bench.progress.finish();
    Ok(report)
}

/// Everything that is measured, in its order.
async fn phases(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    ingest::warm_up(bench).await?;
    match bench.options.mode() {
        Mode::Parts(parts) => {
            for part in parts {
                measure_part(part, bench, report).await?;
            }
            Ok(())
        }
        Mode::Growth => growth::run(bench, report).await,
        Mode::LongTransaction => long_transaction::run(bench, report).await,
        Mode::Sick => sick::run(bench, report).await,
    }
}

async fn measure_part(part: Part, bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    match part {
        Part::Limits => limits::run(bench, report).await,
        Part::Ingest => ingest::run(bench, report).await,
        Part::EndToEnd => end_to_end::run(bench, report, &Setup::headline(bench)).await,
        Part::Two => end_to_end::run(bench, report, &Setup::two()).await,
        Part::Latency => latency::run(bench, report).await,
        Part::Drain => drain::run(bench, report).await,
        Part::Idle => idle::run(bench, report).await,
    }
}

/// How many steps the progress bar has, with the one that warms up.
fn steps(options: &Options) -> u64 {
    let repetitions = options.scale().repetitions;
    1 + match options.mode() {
        Mode::Parts(parts) => parts.iter().map(|part| steps_of_part(*part, &parts, repetitions)).sum(),
        Mode::Growth => growth::STEPS,
        Mode::LongTransaction => long_transaction::STEPS,
        Mode::Sick => sick::STEPS,
    }
}

fn steps_of_part(part: Part, parts: &[Part], repetitions: u64) -> u64 {
    match part {
        Part::Limits => limits::STEPS,
        Part::Ingest => repetitions * ingest::COUNTS.len() as u64,
        Part::EndToEnd | Part::Drain => repetitions,
        // Once more, at half of the end-to-end rate, if that is known.
        Part::Latency => 1 + u64::from(parts.contains(&Part::EndToEnd)),
        Part::Two | Part::Idle => 1,
    }
}

fn write_files(options: &Options, report: &Report) -> anyhow::Result<()> {
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(path) = &options.json {
        write(path, serde_json::to_string_pretty(report)? + "\n")?;
    }
    if let (Some(path), Some(picture)) = (&options.svg, svg::render(report)) {
        write(path, picture)?;
    }
    Ok(())
}

/// The directory of the release binaries.
fn programs(options: &Options) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?.parent().context("a program is in a directory")?.to_owned();
    let directory = options.programs.clone().unwrap_or(own).canonicalize()?;
    ensure!(directory.join("outhook").exists(), "{} holds no outhook: use scripts/bench", directory.display());
    Ok(directory)
}

/// The directory of data and logs, removed at the end unless it was named or is needed.
struct Directory {
    path: PathBuf,
    remove: bool,
}

impl Directory {
    fn create(chosen: Option<PathBuf>) -> anyhow::Result<Self> {
        let remove = chosen.is_none();
        let own = || workspace().join(format!("target/bench-{}", std::process::id()));
        let path = chosen.unwrap_or_else(own);
        std::fs::create_dir(&path).with_context(|| format!("{} cannot be created", path.display()))?;
        Ok(Self { path: path.canonicalize()?, remove })
    }

    /// Leaves it for somebody to look at.
    fn keep(mut self) -> PathBuf {
        self.remove = false;
        self.path.clone()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.remove {
            // What is left is only in the way, and said so by its name.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
