//! Jobs of tasks that were not claimed: how they stand, and what becomes of their outbox rows.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::broker::task::Task;
use crate::job::states::Status;
use crate::service::database::{Pool, on_connection};

/// How the job of a refused task stands.
#[derive(Clone, Debug)]
pub struct UnclaimedJob {
    /// The job.
    pub job_id: Uuid,
    /// Its status.
    pub status: Status,
    /// Its attempt number.
    pub attempt: i32,
    /// Attempts that did not succeed.
    pub retry_count: i32,
    /// Attempts in all, if the job has a limit of its own.
    pub max_attempts: Option<i32>,
    /// Whether its deliveries are in order.
    pub ordered: bool,
    /// Who holds or held the lease; empty unless processing.
    pub claimed_by: String,
    /// While processing, when it was claimed.
    pub started_at: OffsetDateTime,
    /// Whether the lease ended without a record: its worker is lost.
    pub lease_expired: bool,
    /// For how long its URL is still to be left alone, if its receiver asked for that.
    pub paused_for: Option<Duration>,
}

/// Looks up the jobs of tasks that found no claim. Waits for nobody's locks.
///
/// # Errors
/// The database cannot be asked.
pub async fn look_up(pool: &Pool, job_ids: &[Uuid]) -> Result<Vec<UnclaimedJob>, sqlx::Error> {
    let statement = sqlx::query!(
        r#"-- look_up_refused
        SELECT id, status, attempt, retry_count, max_attempts, ordering_key IS NOT NULL AS "ordered!",
               coalesce(claimed_by, '') AS "claimed_by!", updated_at,
               coalesce(lease_until <= now(), false) AS "lease_expired!",
               (SELECT extract(epoch FROM until - now())::float8 FROM url_pauses
                WHERE url = outhook.url_without_query(client_url) AND until > now()) AS paused_for
        FROM webhook_jobs WHERE id = ANY($1)"#,
        job_ids
    );
    let rows = on_connection(pool, async |connection| statement.fetch_all(connection).await).await?;
    let jobs = rows.into_iter().map(|row| UnclaimedJob {
        job_id: row.id,
        status: Status::from_text(&row.status).expect("webhook_jobs_status_known"),
        attempt: row.attempt,
        retry_count: row.retry_count,
        max_attempts: row.max_attempts,
        ordered: row.ordered,
        claimed_by: row.claimed_by,
        started_at: row.updated_at,
        lease_expired: row.lease_expired,
        paused_for: row.paused_for.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()),
    });
    Ok(jobs.collect())
}

/// Puts the rows of these tasks on the list of those that a relay makes due again as soon as nobody holds them, or
/// at the end of their jobs' leases. Only inserts, so it waits for nobody; after it the tasks may be dropped.
///
/// # Errors
/// The database cannot be asked.
pub async fn check_again<'a>(pool: &Pool, tasks: impl IntoIterator<Item = &'a Task>) -> Result<(), sqlx::Error> {
    let (rows, attempts): (Vec<i64>, Vec<i32>) = tasks.into_iter().map(|task| (task.outbox_id, task.attempt)).unzip();
    let statement = sqlx::query!(
        "-- check_again
        INSERT INTO outbox_checks (outbox_id, attempt) SELECT * FROM unnest($1::bigint[], $2::integer[])",
        &rows,
        &attempts
    );
    on_connection(pool, async |connection| statement.execute(connection).await).await.map(drop)
}

/// Gives tasks that were not claimed back to the outbox: their rows are due after these waits, as if they had not
/// been published. Returns the rows; the others are held by somebody or no longer free to be attempted, and nothing
/// was changed about them.
///
/// # Errors
/// The database cannot be asked.
pub async fn postpone(pool: &Pool, tasks: &[(&Task, Duration)]) -> Result<Vec<i64>, sqlx::Error> {
    let rows: Vec<i64> = tasks.iter().map(|(task, _)| task.outbox_id).collect();
    let job_ids: Vec<Uuid> = tasks.iter().map(|(task, _)| task.job_id).collect();
    let attempts: Vec<i32> = tasks.iter().map(|(task, _)| task.attempt).collect();
    let waits: Vec<f64> = tasks.iter().map(|(_, wait)| wait.as_secs_f64()).collect();
    let statement = sqlx::query_scalar!(
        "-- postpone
        WITH free AS MATERIALIZED (
            SELECT outbox.id, task.wait
            FROM unnest($1::bigint[], $2::uuid[], $3::integer[], $4::float8[]) AS task (outbox_id, job_id, attempt, wait)
            JOIN webhook_jobs AS job
                ON job.id = ANY($2) AND job.id = task.job_id AND job.status = 'pending' AND job.attempt = task.attempt
            JOIN outbox ON outbox.id = ANY($1) AND outbox.id = task.outbox_id AND outbox.attempt = task.attempt
            WHERE coalesce(outbox.waits_for, '') = ''
            FOR UPDATE OF outbox, job SKIP LOCKED
        )
        UPDATE outbox SET published_at = NULL, due_at = now() + make_interval(secs => free.wait)
        FROM free WHERE outbox.id = ANY($1) AND outbox.id = free.id
        RETURNING outbox.id",
        &rows,
        &job_ids,
        &attempts,
        &waits,
    );
    on_connection(pool, async |connection| statement.fetch_all(connection).await).await
}

/// Gives tasks back to the outbox whose jobs Postgres cannot read: their rows are due after this wait, and nothing
/// about the jobs is asked for. Should one be at its end or with a worker, its next task finds that out.
///
/// # Errors
/// The database cannot be asked.
pub async fn postpone_unread(pool: &Pool, tasks: &[Task], wait: Duration) -> Result<(), sqlx::Error> {
    let (rows, attempts): (Vec<i64>, Vec<i32>) = tasks.iter().map(|task| (task.outbox_id, task.attempt)).unzip();
    let statement = sqlx::query!(
        "-- postpone_unread
        WITH free AS MATERIALIZED (
            SELECT outbox.id FROM unnest($1::bigint[], $2::integer[]) AS task (outbox_id, attempt)
            JOIN outbox ON outbox.id = ANY($1) AND outbox.id = task.outbox_id AND outbox.attempt = task.attempt
            WHERE coalesce(outbox.waits_for, '') = ''
            FOR UPDATE OF outbox SKIP LOCKED
        )
        UPDATE outbox SET published_at = NULL, due_at = now() + make_interval(secs => $3)
        FROM free WHERE outbox.id = ANY($1) AND outbox.id = free.id",
        &rows,
        &attempts,
        wait.as_secs_f64(),
    );
    on_connection(pool, async |connection| statement.execute(connection).await).await.map(drop)
}
