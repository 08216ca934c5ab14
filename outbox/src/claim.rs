//! The worker's first transaction: one claim an attempt.
//!
//! A claim gives its job the next attempt number, the fence: [`crate::settle`] writes only while the job
//! still has it. A message that finds no claim is a duplicate or stale, unless a worker was lost:
//! [`look_up`] tells.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use url::Url;
use uuid::Uuid;

use crate::database::on_connection;
use crate::destination_keys;
use crate::job::Status;
use crate::kill_point_in;
use crate::message::Message;
use crate::target::destination;

/// A job that this worker may attempt now, once.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The job.
    pub job_id: Uuid,
    /// The number of this attempt, from 1: the fence.
    pub attempt: i32,
    /// Attempts before this one that did not succeed.
    pub retry_count: i32,
    /// Attempts in all, if the job has a limit of its own.
    pub max_attempts: Option<i32>,
    /// Milliseconds for this attempt, if the job has a limit of its own.
    pub timeout_ms: Option<i32>,
    /// Its key, if its deliveries are in order.
    pub ordering_key: Option<String>,
    /// Where to deliver.
    pub client_url: String,
    /// What to deliver.
    pub payload: String,
    /// Extra request headers, an object of strings.
    pub headers: serde_json::Value,
    /// When it was claimed, by the database's clock.
    pub started_at: OffsetDateTime,
    /// When the job was accepted.
    pub created_at: OffsetDateTime,
    /// The job's own signing key, sealed for it.
    pub sealed_key: Option<Vec<u8>>,
    /// Instead, the keys of its destination that sign now, sealed for that, the newest first.
    pub destination_keys: Option<Vec<Vec<u8>>>,
}

/// How long a claim owns its job.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// For the attempt, of a job that has no limit of its own.
    pub timeout: Duration,
    /// Besides.
    pub margin: Duration,
}

/// Claims the messages' jobs for `worker` until the lease has passed. Returns those that were free.
///
/// # Errors
/// The statement failed. Whether it committed is not known: [`recover_claim`] comes before another try.
pub async fn claim(
    pool: &PgPool,
    messages: &[Message],
    worker: &str,
    lease: Lease,
) -> Result<Vec<Claimed>, sqlx::Error> {
    let job_ids: Vec<Uuid> = messages.iter().map(|message| message.job_id).collect();
    let attempts: Vec<i32> = messages.iter().map(|message| message.attempt).collect();
    let statement = sqlx::query_as!(
        Claimed,
        r#"-- claim_jobs
        WITH free AS MATERIALIZED (
            SELECT id FROM webhook_jobs JOIN unnest($1::uuid[], $2::integer[]) AS message (job_id, attempt)
                -- The guard: of any number of equal or stale messages, one finds the job like this.
                ON id = job_id AND status = 'pending' AND webhook_jobs.attempt = message.attempt
            WHERE id = ANY($1)
            -- A row that somebody holds must not stop the others; it is refused, and comes again.
            FOR UPDATE OF webhook_jobs SKIP LOCKED
        )
        UPDATE webhook_jobs AS job
        SET status = 'processing', attempt = job.attempt + 1, claimed_by = $3, updated_at = now(),
            lease_until = now() + make_interval(secs => coalesce(job.timeout_ms / 1000.0::float8, $4) + $5)
        FROM free
        WHERE job.id = ANY($1) AND job.id = free.id
        RETURNING job.id AS job_id, job.attempt, job.retry_count, job.max_attempts, job.timeout_ms, job.ordering_key,
                  job.client_url, job.payload, job.headers, job.updated_at AS started_at, job.created_at, job.sealed_key,
                  -- Asked once a statement: while there are no keys at all, the jobs pay nothing for them.
                  CASE WHEN job.sealed_key IS NULL AND EXISTS (SELECT FROM destination_keys) THEN '{}'::bytea[] END
                      AS destination_keys"#,
        &job_ids,
        &attempts,
        worker,
        lease.timeout.as_secs_f64(),
        lease.margin.as_secs_f64(),
    );
    on_connection(pool, async |connection| {
        let claimed = kill_point_in!("worker.in_claim", statement.fetch_all(&mut *connection)).await?;
        add_destination_keys(connection, claimed).await
    })
    .await
}

/// Finds what an earlier [`claim`] under the same name took without our hearing of it, and starts its lease
/// anew. So `worker` must be a name that no other batch has.
///
/// # Errors
/// The statement failed; it may be repeated.
pub async fn recover_claim(
    pool: &PgPool,
    messages: &[Message],
    worker: &str,
    lease: Lease,
) -> Result<Vec<Claimed>, sqlx::Error> {
    let job_ids: Vec<Uuid> = messages.iter().map(|message| message.job_id).collect();
    let statement = sqlx::query_as!(
        Claimed,
        r#"-- recover_claim
        UPDATE webhook_jobs AS job SET updated_at = now(),
            lease_until = now() + make_interval(secs => coalesce(job.timeout_ms / 1000.0::float8, $3) + $4)
        WHERE id = ANY($1) AND status = 'processing' AND claimed_by = $2
        RETURNING job.id AS job_id, job.attempt, job.retry_count, job.max_attempts, job.timeout_ms, job.ordering_key,
                  job.client_url, job.payload, job.headers, job.updated_at AS started_at, job.created_at, job.sealed_key,
                  -- Asked once a statement: while there are no keys at all, the jobs pay nothing for them.
                  CASE WHEN job.sealed_key IS NULL AND EXISTS (SELECT FROM destination_keys) THEN '{}'::bytea[] END
                      AS destination_keys"#,
        &job_ids,
        worker,
        lease.timeout.as_secs_f64(),
        lease.margin.as_secs_f64(),
    );
    on_connection(pool, async |connection| {
        let claimed = statement.fetch_all(&mut *connection).await?;
        add_destination_keys(connection, claimed).await
    })
    .await
}

/// Reads the keys of the jobs' destinations where the claim says that there may be some: one more statement for
/// the batch, and none without keys. Read after every claim and kept nowhere, so that a key signs, and a removed
/// one does not, from its commit on. If this fails, the claim is recovered by its name.
async fn add_destination_keys(
    connection: &mut PgConnection,
    mut claimed: Vec<Claimed>,
) -> Result<Vec<Claimed>, sqlx::Error> {
    let may_have_keys = |job: &&Claimed| job.destination_keys.is_some();
    let destinations: Vec<String> = claimed.iter().filter(may_have_keys).filter_map(destination_of).collect();
    if destinations.is_empty() {
        return Ok(claimed);
    }
    let keys = destination_keys::signing_now(connection, &destinations).await?;
    for job in claimed.iter_mut().filter(|job| job.destination_keys.is_some()) {
        job.destination_keys = destination_of(job).and_then(|destination| keys.get(&destination).cloned());
    }
    Ok(claimed)
}

/// `None` for a URL that will be refused: `outhook.enqueue` lets some of those through.
fn destination_of(job: &Claimed) -> Option<String> {
    Url::parse(&job.client_url).ok().map(|url| destination(&url))
}

/// How the job of a refused message stands.
#[derive(Clone, Debug)]
pub struct Standing {
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
    /// Its key, if its deliveries are in order.
    pub ordering_key: Option<String>,
    /// Who holds or held the lease; empty unless processing.
    pub claimed_by: String,
    /// While processing, when it was claimed.
    pub started_at: OffsetDateTime,
    /// Whether the lease ended without a record: its worker is lost.
    pub lease_expired: bool,
}

/// Looks up the jobs of messages that found no claim.
///
/// # Errors
/// The database cannot be asked.
pub async fn look_up(pool: &PgPool, job_ids: &[Uuid]) -> Result<Vec<Standing>, sqlx::Error> {
    let statement = sqlx::query!(
        r#"-- look_up_refused
        SELECT id, status, attempt, retry_count, max_attempts, ordering_key, coalesce(claimed_by, '') AS "claimed_by!", updated_at,
               coalesce(lease_until <= now(), false) AS "lease_expired!"
        FROM webhook_jobs WHERE id = ANY($1)"#,
        job_ids
    );
    let rows = on_connection(pool, async |connection| statement.fetch_all(connection).await).await?;
    let standings = rows.into_iter().map(|row| Standing {
        job_id: row.id,
        status: Status::from_text(&row.status).expect("webhook_jobs_status_known"),
        attempt: row.attempt,
        retry_count: row.retry_count,
        max_attempts: row.max_attempts,
        ordering_key: row.ordering_key,
        claimed_by: row.claimed_by,
        started_at: row.updated_at,
        lease_expired: row.lease_expired,
    });
    Ok(standings.collect())
}

/// Sets the alarms of leased jobs to the end of their leases, instead of the far republish interval: if
/// the holder is lost, the relay finds out then. Those of jobs that are free but were locked ring in a
/// second. The caller acks its messages and is free.
///
/// # Errors
/// The database cannot be asked.
pub async fn ring_later(pool: &PgPool, job_ids: &[Uuid]) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        "-- ring_later
        -- A message may come before the relay has recorded it. So the rows are locked first, which waits for
        -- that, and judged by what they are then: a condition on the row itself would judge the old version,
        -- not yet published, and leave it to ring at the republish interval.
        WITH job AS MATERIALIZED (
            SELECT outbox_id, status, attempt, lease_until FROM webhook_jobs WHERE id = ANY($1)
        ), alarm AS MATERIALIZED (
            SELECT id, attempt, published_at FROM outbox
            WHERE id = ANY(ARRAY(SELECT outbox_id FROM job))
            ORDER BY id
            FOR UPDATE
        )
        UPDATE outbox SET due_at = coalesce(job.lease_until, now() + interval '1 second')
        FROM alarm JOIN job ON job.outbox_id = alarm.id
        WHERE outbox.id = ANY(ARRAY(SELECT id FROM alarm)) AND outbox.id = alarm.id
          AND alarm.published_at IS NOT NULL
          -- Not an alarm that was re-armed for the next attempt meanwhile.
          AND alarm.attempt = CASE job.status WHEN 'processing' THEN job.attempt - 1 WHEN 'pending' THEN job.attempt END",
        job_ids
    );
    on_connection(pool, async |connection| statement.execute(connection).await).await?;
    Ok(())
}
