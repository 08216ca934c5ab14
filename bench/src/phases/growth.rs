//! A database that has seen much: years of finished jobs, many retries in the future, a long backlog. What of
//! the speed of empty tables is left?

use crate::distribution::Distribution;
use crate::load::{Accepted, Pace};
use crate::phases::conservation::{self, Filled};
use crate::phases::latency::{from_accepted, post_and_receive};
use crate::phases::{Bench, CONNECTIONS, drain};
use crate::receiver::Arrival;
use crate::report::{Report, Unit, milliseconds};
use crate::stack::{Stack, payload};

const QUIET_RATE: f64 = 50.0;

/// Runs that [`run`] announces.
pub(crate) const STEPS: u64 = 3;

/// Rows in one commit of the filling.
const CHUNK: i64 = 100_000;

/// What is compared.
const FIGURES: [(&str, &str, Unit); 4] = [
    ("ingest", "accepted over 64 connections", Unit::PerSecond),
    ("drain", "drained", Unit::PerSecond),
    ("p50", "202 to received at 50 jobs/s, p50", Unit::Milliseconds),
    ("p99", "202 to received at 50 jobs/s, p99", Unit::Milliseconds),
];

pub(crate) async fn run(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    let part = |full: i64, quick: i64| if bench.options.quick { quick } else { full };
    let empty = Filled { backlog: part(20_000, 5_000), ..Filled::default() };
    let finished = i64::try_from(bench.options.finished())?;
    let grown = Filled { finished, future: part(100_000, 10_000), backlog: part(200_000, 20_000) };
    once(bench, report, "empty", "Growth: empty tables", empty).await?;
    once(bench, report, "grown", &title(grown), grown).await?;

    let median = |key: String| report.find(&key).map_or(f64::NAN, crate::report::Figure::median);
    let ratios = FIGURES.map(|(key, ..)| median(format!("growth.grown.{key}")) / median(format!("growth.empty.{key}")));
    let section = report.section("Growth: full relative to empty");
    for ((key, name, _), ratio) in FIGURES.into_iter().zip(ratios) {
        section.add(&format!("growth.ratio.{key}"), name, Unit::Times, ratio);
    }
    Ok(())
}

fn title(filled: Filled) -> String {
    let Filled { finished, future, backlog } = filled;
    format!("Growth: {finished} finished, {future} due later, backlog of {backlog}")
}

async fn once(bench: &Bench<'_>, report: &mut Report, key: &str, title: &str, filled: Filled) -> anyhow::Result<()> {
    bench.progress.step(&format!("{title}: filling"));
    let mut stack = Stack::create(&bench.site).await?;
    fill(&stack, filled).await?;
    bench.progress.step(title);
    let measured = measure(bench, &mut stack, filled).await?;
    let violations = conservation::violations(&stack, &measured.accepted, &measured.arrivals, filled).await?;
    report.violations.extend(violations);

    let section = report.section(title);
    for ((figure, name, unit), value) in FIGURES.into_iter().zip(measured.figures()) {
        section.add(&format!("growth.{key}.{figure}"), name, unit, value);
    }
    stack.remove().await
}

/// All that happened on one database.
struct Measured {
    ingest: f64,
    drain: f64,
    latencies: Distribution,
    accepted: Vec<Accepted>,
    arrivals: Vec<Arrival>,
}

impl Measured {
    /// In the order of [`FIGURES`].
    fn figures(&self) -> [f64; 4] {
        let wait = |percentile| milliseconds(self.latencies.at(percentile));
        [self.ingest, self.drain, wait(50.0), wait(99.0)]
    }
}

async fn measure(bench: &Bench<'_>, stack: &mut Stack<'_>, filled: Filled) -> anyhow::Result<Measured> {
    stack.start_api().await?;
    let run = stack.post(CONNECTIONS, Pace::Time(bench.scale.ingest)).await?;
    let (ingest, mut accepted) = (run.rate(), run.accepted);

    let jobs = accepted.len() + usize::try_from(filled.backlog)?;
    let mut arrivals = drain::drain(bench, stack, jobs).await?;
    conservation::settled(stack, filled.future).await?;
    let drain = drain::rate(&arrivals);

    let (run, fresh) = post_and_receive(stack, Pace::Rate(QUIET_RATE, bench.scale.latency)).await?;
    conservation::settled(stack, filled.future).await?;
    let latencies = from_accepted(&run.accepted, &fresh);
    accepted.extend(run.accepted);
    arrivals.extend(fresh);
    Ok(Measured { ingest, drain, latencies, accepted, arrivals })
}

/// Writes the rows as the services would have left them, and what autovacuum would have done since.
async fn fill(stack: &Stack<'_>, filled: Filled) -> anyhow::Result<()> {
    stack.client.batch_execute("SET synchronous_commit = off").await?;
    for start in (0..filled.finished).step_by(CHUNK.unsigned_abs().try_into()?) {
        let count = CHUNK.min(filled.finished - start);
        let days = (filled.finished - start) / CHUNK;
        stack.client.execute(FINISHED, &[&count, &payload(), &i32::try_from(days)?]).await?;
    }
    let url = stack.receiver().url();
    stack.client.execute(UNFINISHED, &[&filled.future, &payload(), &url, &1_i32, &86_400_f64]).await?;
    stack.client.execute(UNFINISHED, &[&filled.backlog, &payload(), &url, &0_i32, &0_f64]).await?;
    stack.client.batch_execute("SET synchronous_commit = on").await?;
    stack.client.batch_execute("VACUUM ANALYZE webhook_jobs, webhook_attempts, outbox").await?;
    Ok(stack.client.batch_execute("CHECKPOINT").await?)
}

/// Jobs that were delivered at the first attempt, some days ago, with their attempts.
const FINISHED: &str = "-- fill_finished
    WITH job AS (
        INSERT INTO webhook_jobs
            (id, created_at, updated_at, deliver_at, outbox_id, attempt, status, client_url, payload)
        SELECT outhook.uuid_v7(), now() - make_interval(days => $3), now() - make_interval(days => $3),
               now() - make_interval(days => $3), nextval('outbox_id_seq'), 1, 'success', 'http://127.0.0.1:9/hook', $2
        FROM generate_series(1, $1::bigint)
        RETURNING id, created_at
    )
    INSERT INTO webhook_attempts (job_id, started_at, attempt, duration_ms, status_code, outcome, worker)
    SELECT id, created_at, 1, 12, 200, 'success', 'bench' FROM job";

/// Jobs that wait: with attempts behind them, and due somewhere in the seconds to come, or both none.
const UNFINISHED: &str = "-- fill_unfinished
    WITH job AS (
        INSERT INTO webhook_jobs (id, outbox_id, attempt, retry_count, client_url, payload)
        SELECT outhook.uuid_v7(), nextval('outbox_id_seq'), $4, $4, $3, $2 FROM generate_series(1, $1::bigint)
        RETURNING id, outbox_id
    ), attempt AS (
        INSERT INTO webhook_attempts (job_id, started_at, attempt, duration_ms, status_code, outcome, worker, error)
        SELECT id, now(), $4, 12, 500, 'failed', 'bench', 'HTTP 500' FROM job WHERE $4 > 0
    )
    INSERT INTO outbox (id, job_id, attempt, due_at, destination)
    SELECT outbox_id, id, $4, now() + make_interval(secs => least($5::float8, 3600) + random() * $5),
           outhook.destination($3)
    FROM job";
