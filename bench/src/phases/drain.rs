//! A backlog: accepted while nothing delivers, then delivered while nothing is accepted.

use std::time::Duration;

use crate::limits::{CONFIRMS, POSTS, SQL_LIFE};
use crate::load::{Accepted, Pace};
use crate::phases::conservation::{self, Filled};
use crate::phases::{Bench, CONNECTIONS, DELIVERY_TIMEOUT};
use crate::receiver::Arrival;
use crate::report::{Report, Unit, for_each, per_second};
use crate::stack::Stack;

const TITLE: &str = "Draining a backlog";

pub(crate) async fn run(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    for repetition in 1..=bench.scale.repetitions {
        bench.progress.step(&format!("{TITLE}, repetition {repetition}"));
        let mut stack = Stack::create(&bench.site).await?;
        stack.start_api().await?;
        let accepted = stack.post(CONNECTIONS, Pace::Count(bench.scale.backlog)).await?.accepted;

        let usage = stack.usage()?;
        let arrivals = drain(bench, &mut stack, accepted.len()).await?;
        conservation::settled(&stack, 0).await?;
        let used = stack.usage()?.since(&usage).total();

        report.violations.extend(conservation::violations(&stack, &accepted, &arrivals, Filled::default()).await?);
        let section = report.section(TITLE);
        section
            .add("drain.rate", "delivered, first to last", Unit::PerSecond, rate(&arrivals))
            .bounded_by(&[SQL_LIFE, CONFIRMS, POSTS]);
        let a_job = for_each(used.as_secs_f64() * 1e6, bench.scale.backlog);
        section.add("drain.cpu.total", "processor time a job, all together", Unit::Microseconds, a_job);
        stack.remove().await?;
    }
    Ok(())
}

/// Starts the relays and workers and waits for so many deliveries.
pub(crate) async fn drain(bench: &Bench<'_>, stack: &mut Stack<'_>, jobs: usize) -> anyhow::Result<Vec<Arrival>> {
    let (relays, workers) = bench.deliveries();
    stack.receiver().take()?;
    stack.start_deliveries(relays, workers).await?;
    stack.receiver().wait_for(jobs, DELIVERY_TIMEOUT).await?;
    stack.receiver().take()
}

/// Deliveries a second from the first to the last: without the processes' start.
pub(crate) fn rate(arrivals: &[Arrival]) -> f64 {
    let (first, last) = (arrivals.iter().map(|it| it.at).min(), arrivals.iter().map(|it| it.at).max());
    let time = first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first);
    per_second(arrivals.len() as u64, time)
}

/// Accepts a backlog while nothing delivers it, and drains it. Returns what was accepted and received.
pub(crate) async fn fill_and_drain(
    bench: &Bench<'_>,
    stack: &mut Stack<'_>,
) -> anyhow::Result<(Vec<Accepted>, Vec<Arrival>)> {
    stack.stop_deliveries().await?;
    let accepted = stack.post(CONNECTIONS, Pace::Count(bench.scale.backlog)).await?.accepted;
    let arrivals = drain(bench, stack, accepted.len()).await?;
    Ok((accepted, arrivals))
}
