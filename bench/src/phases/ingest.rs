//! Accepting alone: no relay, no worker. Every 202 is a job and its outbox row on disk.

use anyhow::ensure;

use crate::distribution::Distribution;
use crate::limits::{HUNDRED_A_COMMIT, LOAD, ONE_A_COMMIT};
use crate::load::{Pace, Run};
use crate::phases::{Bench, CONNECTIONS};
use crate::report::{Report, Unit};
use crate::stack::Stack;

/// How many connections post at once.
pub(crate) const COUNTS: [usize; 4] = [1, 16, 64, 256];

/// Accepts at each number of connections, with one section for the rates and one for the latencies.
pub(crate) async fn run(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    for repetition in 1..=bench.scale.repetitions {
        for connections in COUNTS {
            bench.progress.step(&format!("accepting over {connections} connections, repetition {repetition}"));
            let run = accept(bench, connections, Pace::Time(bench.scale.ingest)).await?;
            add(report, connections, &run);
        }
    }
    Ok(())
}

/// Warms up what the first measurement would pay for otherwise: caches, the broker's code, the disk's files.
pub(crate) async fn warm_up(bench: &Bench<'_>) -> anyhow::Result<()> {
    bench.progress.step("warming up");
    accept(bench, CONNECTIONS, Pace::Count(2_000)).await?;
    Ok(())
}

async fn accept(bench: &Bench<'_>, connections: usize, pace: Pace) -> anyhow::Result<Run> {
    let mut stack = Stack::create(&bench.site).await?;
    stack.start_api().await?;
    let run = stack.post(connections, pace).await?;
    // Every one of them, with both rows.
    let rows = "SELECT count(*) FROM webhook_jobs JOIN outbox ON outbox.id = outbox_id AND job_id = webhook_jobs.id";
    let stored = stack.count(rows).await?;
    ensure!(stored == i64::try_from(run.accepted.len())?, "{} were accepted, {stored} stored", run.accepted.len());
    stack.remove().await?;
    Ok(run)
}

fn add(report: &mut Report, connections: usize, run: &Run) {
    let key = format!("ingest.{connections}");
    let section = report.section("Accepting, the api alone");
    let name = format!("accepted over {connections} connections");
    let figure = section.add(&format!("{key}.rate"), &name, Unit::PerSecond, run.rate());
    if connections == CONNECTIONS {
        figure.bounded_by(&[ONE_A_COMMIT, HUNDRED_A_COMMIT, LOAD]);
    }
    let latencies = Distribution::of(run.latencies());
    latencies.add_to(section, &key, &format!("answered over {connections}"));
    let curve = latencies.curve(&format!("{connections} at once"));
    report.latencies.retain(|known| known.name != curve.name);
    report.latencies.push(curve);
}
