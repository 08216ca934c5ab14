//! The worker's second transaction: one recorded outcome an attempt.
//!
//! The job's transition, the attempt's record and the outbox row change together, and only while the job
//! still has the attempt's number: a worker that lost its lease writes nothing.

use std::time::Duration;

use sqlx::{Acquire, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::job::states::{Outcome, Status};
use crate::kill_point_in;
use crate::service::database::{Pool, on_connection};

/// What became of an attempt, to be recorded.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The job.
    pub job_id: Uuid,
    /// The attempt's number: the fence.
    pub attempt: i32,
    /// What the job becomes: `pending` or a final status.
    pub status: Status,
    /// Wait before the next attempt; of no meaning unless `status` is pending.
    pub retry_in: Duration,
    /// Whether others wait for the job's end: its deliveries are in order.
    pub ordered: bool,
    /// Whether it is written on behalf of a lost worker: only if the lease has ended, as it is then.
    pub taken_over: bool,
    /// Who made the attempt.
    pub worker: String,
    /// When it was claimed, by the database's clock.
    pub started_at: OffsetDateTime,
    /// How long the request took, in milliseconds; `None` when nobody knows.
    pub duration_ms: Option<i32>,
    /// Status of the answer, if there was one.
    pub status_code: Option<i32>,
    /// What is known of it.
    pub outcome: Outcome,
    /// Why it did not succeed; empty if it did.
    pub error: String,
    /// Beginning of the response body, free of U+0000.
    pub response_excerpt: String,
}

/// A settlement that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settled {
    /// The job.
    pub job_id: Uuid,
    /// The attempt.
    pub attempt: i32,
    /// Whether the job's outbox row was there to be re-armed or deleted. Always, unless somebody else
    /// deleted it: then a job that is to be tried again is lost.
    pub outbox_row_found: bool,
}

/// Writes a batch of settlements in one statement. Returns those whose attempt still held its job; the others
/// changed nothing.
///
/// # Errors
/// The statement failed, perhaps because somebody holds one of the rows for longer than this connection waits: then
/// [`settle_free`] writes the others. The same batch may be settled again: what was written is refused the second
/// time.
pub async fn settle(pool: &Pool, settlements: &[Settlement]) -> Result<Vec<Settled>, sqlx::Error> {
    let all: Vec<&Settlement> = settlements.iter().collect();
    on_connection(pool, async |connection| kill_point_in!("worker.in_settle", write(connection, &all)).await).await
}

/// What [`settle_free`] did.
#[derive(Clone, Debug, Default)]
pub struct SettledFree {
    /// As of [`settle`].
    pub settled: Vec<Settled>,
    /// Jobs that somebody else holds, or whose outbox row: nothing was written for these.
    pub held: Vec<Uuid>,
}

/// Writes those of the settlements whose rows nobody else holds, and waits for none of them.
///
/// # Errors
/// As [`settle`].
pub async fn settle_free(pool: &Pool, settlements: &[Settlement]) -> Result<SettledFree, sqlx::Error> {
    on_connection(pool, async |connection| {
        let mut transaction = connection.begin().await?;
        let held = lock_free(&mut transaction, settlements).await?;
        let free: Vec<&Settlement> = settlements.iter().filter(|it| !held.contains(&it.job_id)).collect();
        let settled = write(&mut transaction, &free).await?;
        transaction.commit().await?;
        Ok(SettledFree { settled, held })
    })
    .await
}

/// Locks what is free, and returns the jobs that are not.
async fn lock_free(connection: &mut PgConnection, settlements: &[Settlement]) -> Result<Vec<Uuid>, sqlx::Error> {
    let job_ids: Vec<Uuid> = settlements.iter().map(|it| it.job_id).collect();
    sqlx::query_scalar!(
        "-- lock_for_settlement
        WITH job AS MATERIALIZED (
            SELECT id, outbox_id FROM webhook_jobs WHERE id = ANY($1) FOR UPDATE SKIP LOCKED
        ), outbox_row AS MATERIALIZED (
            SELECT id FROM outbox WHERE id = ANY(ARRAY(SELECT outbox_id FROM job)) FOR UPDATE SKIP LOCKED
        ), held_outbox_row AS MATERIALIZED (
            SELECT id FROM outbox
            WHERE id = ANY(ARRAY(SELECT outbox_id FROM job)) AND id NOT IN (SELECT id FROM outbox_row)
        )
        SELECT id FROM webhook_jobs
        WHERE id = ANY($1)
          AND id NOT IN (SELECT id FROM job WHERE outbox_id NOT IN (SELECT id FROM held_outbox_row))",
        &job_ids
    )
    .fetch_all(connection)
    .await
}

async fn write(connection: &mut PgConnection, settlements: &[&Settlement]) -> Result<Vec<Settled>, sqlx::Error> {
    let job_ids: Vec<Uuid> = settlements.iter().map(|it| it.job_id).collect();
    let attempts: Vec<i32> = settlements.iter().map(|it| it.attempt).collect();
    let statuses: Vec<&str> = settlements.iter().map(|it| it.status.as_str()).collect();
    let retry_in: Vec<f64> = settlements.iter().map(|it| it.retry_in.as_secs_f64()).collect();
    let workers: Vec<&str> = settlements.iter().map(|it| it.worker.as_str()).collect();
    let started_at: Vec<OffsetDateTime> = settlements.iter().map(|it| it.started_at).collect();
    let durations: Vec<Option<i32>> = settlements.iter().map(|it| it.duration_ms).collect();
    let status_codes: Vec<Option<i32>> = settlements.iter().map(|it| it.status_code).collect();
    let outcomes: Vec<&str> = settlements.iter().map(|it| it.outcome.as_str()).collect();
    let errors: Vec<&str> = settlements.iter().map(|it| it.error.as_str()).collect();
    let excerpts: Vec<&str> = settlements.iter().map(|it| it.response_excerpt.as_str()).collect();
    let taken_over: Vec<bool> = settlements.iter().map(|it| it.taken_over).collect();
    sqlx::query_as!(
        Settled,
        r#"-- settle_attempts
        WITH result AS (
            SELECT * FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::float8[], $5::text[], $6::timestamptz[],
                                 $7::integer[], $8::integer[], $9::text[], $10::text[], $11::text[], $12::boolean[])
                AS result (job_id, attempt, status, retry_in, worker, started_at,
                           duration_ms, status_code, outcome, error, response_excerpt, taken_over)
        ), settled AS (
            UPDATE webhook_jobs AS job
            SET status = result.status, error = result.error, updated_at = now(), lease_until = NULL, claimed_by = NULL,
                retry_count = job.retry_count + (result.status <> 'success')::integer
            FROM result
            -- The fence: whoever lost its lease to a later attempt matches nothing.
            WHERE job.id = ANY($1) AND job.id = result.job_id AND job.attempt = result.attempt AND job.status = 'processing'
              -- A holder that is slow may have started its lease anew.
              AND (NOT result.taken_over OR job.lease_until <= now())
            RETURNING job.id AS job_id, job.attempt, job.status, job.outbox_id,
                      now() + make_interval(secs => result.retry_in) AS retry_at
        ), recorded AS (
            INSERT INTO webhook_attempts
                (job_id, attempt, worker, started_at, duration_ms, status_code, outcome, error, response_excerpt, retry_at)
            SELECT job_id, attempt, worker, started_at, duration_ms, status_code, outcome, error, response_excerpt,
                   CASE WHEN settled.status = 'pending' THEN retry_at END
            FROM settled JOIN result USING (job_id, attempt)
        ), rearmed AS (
            UPDATE outbox AS outbox_row
            SET attempt = settled.attempt, due_at = settled.retry_at, published_at = NULL, message_id = gen_random_uuid(),
                released = false, waits_for = NULL
            FROM settled
            WHERE outbox_row.id = ANY(ARRAY(SELECT outbox_id FROM settled WHERE status = 'pending'))
              AND outbox_row.id = settled.outbox_id
            RETURNING outbox_row.id
        ), deleted AS (
            DELETE FROM outbox
            WHERE id = ANY(ARRAY(SELECT outbox_id FROM settled WHERE status <> 'pending'))
            RETURNING id
        )
        SELECT job_id AS "job_id!", attempt AS "attempt!", outbox_row.id IS NOT NULL AS "outbox_row_found!"
        FROM settled LEFT JOIN (SELECT id FROM rearmed UNION ALL SELECT id FROM deleted) AS outbox_row
            ON outbox_row.id = settled.outbox_id"#,
        &job_ids,
        &attempts,
        &statuses as _,
        &retry_in,
        &workers as _,
        &started_at,
        &durations as _,
        &status_codes as _,
        &outcomes as _,
        &errors as _,
        &excerpts as _,
        &taken_over,
    )
    .fetch_all(connection)
    .await
}
