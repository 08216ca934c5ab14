//! How long one webhook takes while there is room for more: at a rate that keeps nothing busy, and at half of
//! what end to end reached.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::distribution::Distribution;
use crate::load::{Accepted, Pace, Run};
use crate::phases::conservation::{self, Filled};
use crate::phases::{Bench, CONNECTIONS, DELIVERY_TIMEOUT};
use crate::receiver::Arrival;
use crate::report::{Report, Unit};
use crate::stack::Stack;

const QUIET_RATE: f64 = 50.0;

pub(crate) async fn run(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    at_rate(bench, report, QUIET_RATE, "latency.quiet", "Latency at 50 jobs/s").await?;
    // Known only if it was measured in this run.
    let half = report.find("end_to_end.rate").map(|figure| figure.median() / 2.0);
    match half {
        Some(rate) => at_rate(bench, report, rate, "latency.half", "Latency at half of the end-to-end rate").await,
        None => Ok(()),
    }
}

async fn at_rate(bench: &Bench<'_>, report: &mut Report, rate: f64, key: &str, title: &str) -> anyhow::Result<()> {
    bench.progress.step(title);
    let (relays, workers) = bench.deliveries();
    let stack = Stack::start(&bench.site, relays, workers).await?;
    let (run, arrivals) = post_and_receive(&stack, Pace::Rate(rate, bench.scale.latency)).await?;
    conservation::settled(&stack, 0).await?;
    report.violations.extend(conservation::violations(&stack, &run.accepted, &arrivals, Filled::default()).await?);

    let section = report.section(title);
    section.add(&format!("{key}.rate"), "accepted", Unit::PerSecond, run.rate());
    from_accepted(&run.accepted, &arrivals).add_to(section, key, "202 to received");
    from_due(&run.accepted, &arrivals).add_to(section, &format!("{key}.sent"), "sent to received");
    Distribution::of(run.latencies()).add_to(section, &format!("{key}.answered"), "sent to 202");
    stack.remove().await
}

/// Posts, and waits for as many deliveries.
pub(crate) async fn post_and_receive(stack: &Stack<'_>, pace: Pace) -> anyhow::Result<(Run, Vec<Arrival>)> {
    stack.receiver().take()?;
    let run = stack.post(CONNECTIONS, pace).await?;
    stack.receiver().wait_for(run.accepted.len(), DELIVERY_TIMEOUT).await?;
    Ok((run, stack.receiver().take()?))
}

/// From each 202 to the job's arrival. Where the delivery overtook its 202, which is on its way to another
/// thread, there was no wait.
pub(crate) fn from_accepted(accepted: &[Accepted], arrivals: &[Arrival]) -> Distribution {
    waits(accepted, arrivals, |it| it.answered)
}

/// From when each request was due to be sent.
fn from_due(accepted: &[Accepted], arrivals: &[Arrival]) -> Distribution {
    waits(accepted, arrivals, |it| it.due)
}

fn waits(accepted: &[Accepted], arrivals: &[Arrival], start: fn(&Accepted) -> Instant) -> Distribution {
    let at: HashMap<Uuid, Instant> = arrivals.iter().rev().map(|arrival| (arrival.job_id, arrival.at)).collect();
    let wait = |it: &Accepted| -> Option<Duration> { Some(at.get(&it.job_id)?.saturating_duration_since(start(it))) };
    Distribution::of(accepted.iter().filter_map(wait))
}
