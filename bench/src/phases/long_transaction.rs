//! A transaction that somebody holds open: nothing that it could still see is cleaned up meanwhile, and a
//! queue in a table is made of such rows.

use crate::distribution::Distribution;
use crate::load::Pace;
use crate::phases::conservation::{self, Filled};
use crate::phases::latency::{from_accepted, post_and_receive};
use crate::phases::{Bench, drain};
use crate::report::{Report, Unit};
use crate::stack::Stack;

const RATE: f64 = 500.0;

/// Runs that [`run`] announces.
pub(crate) const STEPS: u64 = 2;

pub(crate) async fn run(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    once(bench, report, false).await?;
    once(bench, report, true).await?;
    let median = |key: &str| report.find(key).map_or(f64::NAN, crate::report::Figure::median);
    let drained = median("long_transaction.held.drain") / median("long_transaction.free.drain");
    let waited = median("long_transaction.held.p50") / median("long_transaction.free.p50");
    let section = report.section("Under a long transaction, relative to without");
    section.add("long_transaction.ratio.drain", "drained a second", Unit::Times, drained);
    section.add("long_transaction.ratio.p50", "202 to received, p50", Unit::Times, waited);
    Ok(())
}

/// So long at 500 jobs/s, then a backlog; under an open transaction, or not.
async fn once(bench: &Bench<'_>, report: &mut Report, held: bool) -> anyhow::Result<()> {
    let (key, title) = if held { ("held", "Under a long transaction") } else { ("free", "Without a long transaction") };
    bench.progress.step(title);
    let (relays, workers) = bench.deliveries();
    let mut stack = Stack::start(&bench.site, relays, workers).await?;
    let holder = bench.site.servers.connect(&stack.database).await?;
    if held {
        // The snapshot is taken by the first query, not by BEGIN.
        holder.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM webhook_jobs").await?;
    }

    let pace = Pace::Rate(RATE, bench.options.under_transaction());
    let (run, mut arrivals) = post_and_receive(&stack, pace).await?;
    let latencies: Distribution = from_accepted(&run.accepted, &arrivals);
    let (backlog, drained) = drain::fill_and_drain(bench, &mut stack).await?;
    conservation::settled(&stack, 0).await?;
    let rate = drain::rate(&drained);
    let dead = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'outbox'";
    let dead = i32::try_from(stack.count(dead).await?)?;

    // What must hold includes that no session stands idle in a transaction.
    if held {
        holder.batch_execute("COMMIT").await?;
    }
    let accepted = [run.accepted, backlog].concat();
    arrivals.extend(drained);
    report.violations.extend(conservation::violations(&stack, &accepted, &arrivals, Filled::default()).await?);
    let (section, key) = (report.section(title), format!("long_transaction.{key}"));
    latencies.add_to(section, &key, "202 to received at 500 jobs/s");
    section.add(&format!("{key}.drain"), "backlog drained afterwards", Unit::PerSecond, rate);
    section.add(&format!("{key}.dead"), "dead rows left in outbox", Unit::Rows, dead.into());
    drop(holder);
    stack.remove().await
}
