//! Doing nothing: what polling and heartbeats cost.

use std::time::{Duration, Instant};

use crate::phases::Bench;
use crate::process_time;
use crate::report::{Report, Unit};
use crate::stack::Stack;

const TITLE: &str = "Idle, share of one processor";

/// The start's own work is over after this.
const SETTLING: Duration = Duration::from_secs(3);

pub(crate) async fn run(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    bench.progress.step(TITLE);
    let (relays, workers) = bench.deliveries();
    let stack = Stack::start(&bench.site, relays, workers).await?;
    tokio::time::sleep(SETTLING).await;

    let (services, started, usage) = (used(&stack)?, Instant::now(), stack.usage()?);
    tokio::time::sleep(bench.scale.idle).await;
    let (now, time, usage) = (used(&stack)?, started.elapsed(), stack.usage()?.since(&usage));

    let section = report.section(TITLE);
    let share = |used: Duration| 100.0 * used.as_secs_f64() / time.as_secs_f64();
    let mut together = Duration::ZERO;
    for ((name, before), after) in ["api", "relay", "worker"].iter().zip(services).zip(now) {
        section.add(&format!("idle.{name}"), name, Unit::Percent, share(after.saturating_sub(before)));
        together += after.saturating_sub(before);
    }
    section.add("idle.services", "the three services together", Unit::Percent, share(together));
    for (name, used) in usage.by_process().filter(|(name, _)| ["postgres", "rabbitmq"].contains(name)) {
        section.add(&format!("idle.{name}"), name, Unit::Percent, share(used));
    }
    stack.remove().await
}

/// Of each service, to the nanosecond: an idle one uses less than a tick.
fn used(stack: &Stack<'_>) -> anyhow::Result<[Duration; 3]> {
    let mut sums = [Duration::ZERO; 3];
    for (sum, pids) in sums.iter_mut().zip(stack.services()) {
        for pid in pids {
            *sum += process_time::of_threads(pid)?;
        }
    }
    Ok(sums)
}
