//! Accepting and delivering at once, and what that costs whom.

use std::time::{Duration, Instant};

use crate::limits::{CONFIRMS, POSTS, SQL_LIFE};
use crate::load::{Pace, Run};
use crate::options::Part;
use crate::phases::conservation::{self, Filled};
use crate::phases::{Bench, CONNECTIONS, DELIVERY_TIMEOUT, statements};
use crate::process_time::{peak_memory, proportional_memory};
use crate::receiver::Arrival;
use crate::report::{Curve, Report, Section, Unit, for_each, per_second};
use crate::servers::Servers;
use crate::stack::Stack;
use crate::usage::Usage;

/// What is run, and under which name.
pub(crate) struct Setup {
    pub part: Part,
    pub title: &'static str,
    /// Beginning of the figures' keys.
    pub key: &'static str,
    pub relays: usize,
    pub workers: usize,
    pub repetitions: u64,
}

impl Setup {
    /// The headline figure, with as many relays and workers as were asked for.
    pub(crate) fn headline(bench: &Bench<'_>) -> Self {
        let (relays, workers) = bench.deliveries();
        let repetitions = bench.scale.repetitions;
        let (part, title) = (Part::EndToEnd, "End to end, while accepting");
        Self { part, title, key: "end_to_end", relays, workers, repetitions }
    }

    pub(crate) fn two() -> Self {
        let (part, title) = (Part::Two, "End to end with 2 relays and 2 workers");
        Self { part, title, key: "two", relays: 2, workers: 2, repetitions: 1 }
    }
}

pub(crate) async fn run(bench: &Bench<'_>, report: &mut Report, setup: &Setup) -> anyhow::Result<()> {
    for repetition in 1..=setup.repetitions {
        bench.progress.step(&format!("{}, repetition {repetition}", setup.title));
        once(bench, report, setup).await?;
    }
    Ok(())
}

async fn once(bench: &Bench<'_>, report: &mut Report, setup: &Setup) -> anyhow::Result<()> {
    let jobs = bench.scale.jobs;
    let mut stack = Stack::start(&bench.site, setup.relays, setup.workers).await?;
    stack.receiver().take()?;
    if bench.options.statements {
        statements::reset(&stack).await?;
    }
    let (usage, wal, started) = (stack.usage()?, stack.wal_bytes().await?, Instant::now());

    let run = stack.post(CONNECTIONS, Pace::Count(jobs)).await?;
    stack.receiver().wait_for(run.accepted.len(), DELIVERY_TIMEOUT).await?;
    conservation::settled(&stack, 0).await?;

    let (usage, wal) = (stack.usage()?.since(&usage), stack.wal_bytes().await? - wal);
    let disturbance = usage.of_others().as_secs_f64() / started.elapsed().as_secs_f64();
    let arrivals = stack.receiver().take()?;
    let violations = conservation::violations(&stack, &run.accepted, &arrivals, Filled::default()).await?;
    report.violations.extend(violations);

    let section = report.section(setup.title);
    add_rates(section, setup.key, &run, &arrivals);
    add_costs(section, setup.key, usage, wal, jobs);
    let name = "taken by anything else meanwhile, of one processor";
    section.add(&format!("{}.others", setup.key), name, Unit::Percent, 100.0 * disturbance);
    add_memory(section, setup.key, bench.site.servers, &stack)?;
    let hot = hot_share(&mut stack, jobs).await?;
    section.add(&format!("{}.hot", setup.key), "updates of jobs that are HOT", Unit::Percent, hot);
    if setup.part == Part::EndToEnd {
        report.throughput = throughput(&run, &arrivals);
    }
    if bench.options.statements {
        statements::add(&stack, report, jobs).await?;
    }
    stack.remove().await
}

fn add_rates(section: &mut Section, key: &str, run: &Run, arrivals: &[Arrival]) {
    let first = run.accepted.iter().map(|it| it.answered).min();
    let last = arrivals.iter().map(|it| it.at).max();
    let time = first.zip(last).map_or(Duration::ZERO, |(first, last)| last.saturating_duration_since(first));
    let rate = per_second(arrivals.len() as u64, time);
    section
        .add(&format!("{key}.rate"), "jobs, first 202 to last delivery", Unit::PerSecond, rate)
        .bounded_by(&[SQL_LIFE, CONFIRMS, POSTS]);
    section.add(&format!("{key}.accepted"), "accepted meanwhile", Unit::PerSecond, run.rate());
}

fn add_costs(section: &mut Section, key: &str, usage: Usage, wal: i64, jobs: u64) {
    let a_job = |time: Duration| for_each(time.as_secs_f64() * 1e6, jobs);
    for (process, time) in usage.by_process() {
        let name = format!("processor time a job, {process}");
        section.add(&format!("{key}.cpu.{process}"), &name, Unit::Microseconds, a_job(time));
    }
    let total = a_job(usage.total());
    section.add(&format!("{key}.cpu.total"), "processor time a job, all together", Unit::Microseconds, total);
    #[allow(clippy::cast_precision_loss, reason = "no run writes 2^52 bytes")]
    section.add(&format!("{key}.wal"), "write-ahead log a job", Unit::Bytes, for_each(wal as f64, jobs));
}

/// Peaks since each process was started; for Postgres, whose processes share most of theirs, what all of
/// them together hold at the end.
fn add_memory(section: &mut Section, key: &str, servers: &Servers, stack: &Stack<'_>) -> anyhow::Result<()> {
    #[allow(clippy::cast_precision_loss, reason = "no machine has 2^52 bytes")]
    let mut add = |process: &str, name: &str, bytes: u64| {
        let key = format!("{key}.memory.{process}");
        section.add(&key, name, Unit::Mebibytes, bytes as f64 / 1_048_576.0);
    };
    for (process, pids) in ["api", "relay", "worker"].iter().zip(stack.services()) {
        let peaks: u64 = pids.into_iter().map(peak_memory).sum::<anyhow::Result<u64>>()?;
        add(process, &format!("peak resident memory, {process}"), peaks);
    }
    add("rabbitmq", "peak resident memory, rabbitmq", peak_memory(servers.rabbitmq_pid)?);
    add("postgres", "memory at the end (Pss), postgres", proportional_memory(servers.postgres_pid)?);
    Ok(())
}

/// The share of HOT updates in percent. Backends report when they have time, and at their end: so the workers
/// are stopped, and the two updates of each job are waited for, but not for ever.
#[allow(clippy::cast_precision_loss, reason = "no run has 2^52 jobs")]
async fn hot_share(stack: &mut Stack<'_>, jobs: u64) -> anyhow::Result<f64> {
    stack.stop_deliveries().await?;
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let statement = "SELECT n_tup_hot_upd, n_tup_upd FROM pg_stat_user_tables WHERE relname = 'webhook_jobs'";
        let row = stack.client.query_one(statement, &[]).await?;
        let (hot, all): (i64, i64) = (row.get(0), row.get(1));
        if all.cast_unsigned() >= 2 * jobs || Instant::now() > deadline {
            return Ok(100.0 * hot as f64 / all.max(1) as f64);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Jobs accepted and delivered a second, over the time of the run.
fn throughput(run: &Run, arrivals: &[Arrival]) -> Vec<Curve> {
    const POINTS: u32 = 40;
    let accepted: Vec<Instant> = run.accepted.iter().map(|it| it.answered).collect();
    let delivered: Vec<Instant> = arrivals.iter().map(|it| it.at).collect();
    let moments = || accepted.iter().chain(&delivered).copied();
    let (Some(first), Some(last)) = (moments().min(), moments().max()) else { return vec![] };
    let step = ((last - first) / POINTS).max(Duration::from_millis(1));
    let curve = |name: &str, moments: &[Instant]| {
        let points = (0..POINTS).map(|point| {
            let (start, end) = (first + step * point, first + step * (point + 1));
            let count = moments.iter().filter(|&&moment| moment >= start && moment < end).count();
            (step.as_secs_f64() * (f64::from(point) + 0.5), per_second(count as u64, step))
        });
        Curve { name: name.to_owned(), points: points.collect() }
    };
    vec![curve("accepted", &accepted), curve("delivered", &delivered)]
}
