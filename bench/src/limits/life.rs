//! The whole life of a job in SQL alone, by the statements of crate `outbox`: accepted, found due, marked as
//! published, claimed and settled, in batches. No HTTP, no broker, no waiting.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::future::try_join_all;
use outbox::broker::task::Task;
use outbox::due::{self, Statements};
use outbox::job::accept::{self, NewJob};
use outbox::job::claim::{self, Claimed, Lease};
use outbox::job::settle::{self, Settlement};
use outbox::job::states::{Outcome, Status};
use outbox::service::database::{JOIN_BY_HASH, Pool};

use tokio_postgres::Client;
use uuid::Uuid;

use crate::limits::{SQL_LIFE, TITLE};
use crate::phases::Bench;
use crate::process_time;
use crate::report::{Report, Unit, for_each, per_second};
use crate::stack::{Stack, payload};

const BATCH: u16 = 200;

/// Batches under way at once: as many as there are processors on a small machine.
const LANES: u32 = 2;

const LEASE: Duration = Duration::from_mins(1);

pub(crate) async fn run(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    bench.progress.step("the life of jobs in SQL alone");
    let stack = Stack::create(&bench.site).await?;
    let config = bench.site.servers.database_config(&stack.database);
    let pool = config.pool_with("outhook-bench", LANES, Duration::from_secs(10), &[JOIN_BY_HASH]);
    let mut clients = Vec::new();
    for _ in 0..LANES {
        clients.push(config.connect_service("outhook-bench").await?);
    }

    let postgres = bench.site.servers.postgres_pid;
    let (used, started, begun) = (process_time::of_tree(postgres)?, Instant::now(), AtomicU64::new(0));
    let limit = bench.scale.jobs;
    let lanes = clients.iter_mut().enumerate().map(|(lane, client)| live(&pool, client, lane, &begun, limit));
    let finished: u64 = try_join_all(lanes).await?.iter().sum();
    let (time, used) = (started.elapsed(), process_time::of_tree(postgres)?.saturating_sub(used));

    drop(pool);
    stack.remove().await?;
    ensure!(finished == begun.into_inner(), "a job got lost in SQL alone");
    let section = report.section(TITLE);
    section.add(SQL_LIFE, "a job's life in SQL, batches of 200", Unit::PerSecond, per_second(finished, time));
    let microseconds = for_each(used.as_secs_f64() * 1e6, finished);
    section.add("limit.sql_life_cpu", "the same, processor time of Postgres a job", Unit::Microseconds, microseconds);
    Ok(())
}

/// One lane: takes jobs through their lives until as many have begun as are wanted. Returns how many it
/// finished; they may be another lane's.
async fn live(pool: &Pool, client: &mut Client, lane: usize, begun: &AtomicU64, limit: u64) -> anyhow::Result<u64> {
    let (mut finished, mut batch) = (0, 0);
    let lease = Lease { timeout: LEASE, margin: Duration::ZERO };
    let statements = Statements::prepare(client).await?;
    loop {
        let begins = begun.load(Ordering::Relaxed) < limit;
        if begins {
            begun.fetch_add(BATCH.into(), Ordering::Relaxed);
            accept::accept(pool, &(0..BATCH).map(|_| new_job()).collect::<Vec<_>>()).await?;
        }
        let messages = publish(client, &statements).await?;
        if messages.is_empty() && !begins {
            return Ok(finished);
        }
        batch += 1;
        let claimed = claim::claim(pool, &messages, &format!("{lane}-{batch}"), lease).await?;
        let settlements: Vec<_> = claimed.iter().map(delivered).collect();
        finished += settle::settle(pool, &settlements).await?.len() as u64;
    }
}

/// What the relay does, without a broker.
async fn publish(client: &mut Client, statements: &Statements) -> anyhow::Result<Vec<Task>> {
    let transaction = client.transaction().await?;
    let due = due::claim_due(&transaction, statements, BATCH.into(), None).await?;
    let ids: Vec<i64> = due.iter().map(due::DueRow::id).collect();
    due::mark_published(&transaction, statements, &ids, LEASE * 15).await?;
    transaction.commit().await?;
    Ok(due.into_iter().map(|row| row.task).collect())
}

fn new_job() -> NewJob {
    NewJob {
        id: Uuid::now_v7(),
        client_url: "http://127.0.0.1:9080/hook".to_owned(),
        destination: "http://127.0.0.1:9080".to_owned().into(),
        payload: payload(),
        headers: serde_json::Map::new(),
        deliver_at: None,
        max_attempts: None,
        timeout_ms: None,
        ordering_key: None,
        idempotency: None,
        traceparent: None,
        sealed_key: None,
    }
}

fn delivered(job: &Claimed) -> Settlement {
    Settlement {
        job_id: job.job_id,
        attempt: job.attempt,
        status: Status::Success,
        retry_in: Duration::ZERO,
        ordered: false,
        taken_over: false,
        worker: "outhook-bench".to_owned(),
        started_at: job.started_at,
        duration_ms: Some(1),
        status_code: Some(200),
        outcome: Outcome::Success,
        error: String::new(),
        response_excerpt: "ok".to_owned(),
    }
}
