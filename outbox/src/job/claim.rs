//! The worker's first transaction: one claim an attempt.
//!
//! A claim gives its job the next attempt number, the fence: [`crate::job::settle`] writes only while the job
//! still has it. A task that finds no claim is a duplicate or stale, unless a worker was lost:
//! [`super::unclaimed::look_up`] tells.

mod row;

use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use url::Url;
use uuid::Uuid;

use self::row::{Readable, Row};
use crate::broker::task::Task;
use crate::destination::Destination;
use crate::kill_point_in;
use crate::service::database::{Pool, is_of_one_row, on_connection};
use crate::signing::store;

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
    /// Whether its deliveries are in order.
    pub ordered: bool,
    /// Where to deliver.
    pub client_url: String,
    /// What to deliver.
    pub payload: String,
    /// Extra request headers, an object of strings.
    pub headers: serde_json::Value,
    /// The column that cannot be read, if one of these three cannot: it is empty then, and the job cannot be delivered.
    pub unreadable: Option<&'static str>,
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

/// Claims the tasks' jobs for `worker` until the lease has passed. Returns those that were free.
///
/// # Errors
/// The statement failed. Whether it committed is not known: [`recover_claim`] comes before another try.
pub async fn claim(pool: &Pool, tasks: &[Task], worker: &str, lease: Lease) -> Result<Vec<Claimed>, sqlx::Error> {
    let job_ids: Vec<Uuid> = tasks.iter().map(|task| task.job_id).collect();
    let attempts: Vec<i32> = tasks.iter().map(|task| task.attempt).collect();
    let destinations: Vec<&str> = tasks.iter().map(|task| task.destination.as_str()).collect();
    let limited: Vec<bool> = tasks.iter().map(|task| task.limited).collect();
    let statement = sqlx::query_as!(
        Row,
        r#"-- claim_jobs
        WITH free AS MATERIALIZED (
            SELECT id FROM webhook_jobs
            JOIN unnest($1::uuid[], $2::integer[], $6::text[], $7::boolean[]) AS task (job_id, attempt, destination, limited)
                -- The guard: of any number of equal or stale tasks, one finds the job like this.
                ON id = job_id AND status = 'pending' AND webhook_jobs.attempt = task.attempt
            WHERE id = ANY($1)
              -- Its receiver asked for a pause. While nobody has, the jobs pay nothing for it. Looked up by its key for
              -- each: for NOT EXISTS, Postgres may make a list of all that there are, in each statement.
              AND CASE WHEN EXISTS (SELECT FROM url_pauses) THEN coalesce(
                      (SELECT until FROM url_pauses WHERE url = outhook.url_without_query(client_url)) <= now(), true)
                  ELSE true END
              -- Its destination got a limit after it was published: it comes again, and needs a slot then.
              AND CASE WHEN EXISTS (SELECT FROM destinations WHERE rate_limit IS NOT NULL) THEN task.limited OR (
                      SELECT rate_limit FROM destinations WHERE destinations.destination = task.destination) IS NULL
                  ELSE true END
            -- A row that somebody holds must not stop the others; it is refused, and comes again.
            FOR UPDATE OF webhook_jobs SKIP LOCKED
        )
        UPDATE webhook_jobs AS job
        SET status = 'processing', attempt = job.attempt + 1, claimed_by = $3, updated_at = now(),
            lease_until = now() + make_interval(secs => coalesce(job.timeout_ms / 1000.0::float8, $4) + $5)
        FROM free
        WHERE job.id = ANY($1) AND job.id = free.id
        RETURNING job.id AS job_id, job.attempt, job.retry_count, job.max_attempts, job.timeout_ms,
                  job.ordering_key IS NOT NULL AS "ordered!",
                  job.client_url AS "client_url: Readable<String>", job.payload AS "payload: Readable<String>",
                  job.headers AS "headers: Readable<serde_json::Value>",
                  job.updated_at AS started_at, job.created_at, job.sealed_key,
                  -- Asked once a statement: while there are no keys at all, the jobs pay nothing for them.
                  CASE WHEN job.sealed_key IS NULL AND EXISTS (SELECT FROM destination_keys) THEN '{}'::bytea[] END
                      AS destination_keys"#,
        &job_ids,
        &attempts,
        worker,
        lease.timeout.as_secs_f64(),
        lease.margin.as_secs_f64(),
        &destinations as _,
        &limited,
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
    pool: &Pool,
    tasks: &[Task],
    worker: &str,
    lease: Lease,
) -> Result<Vec<Claimed>, sqlx::Error> {
    let job_ids: Vec<Uuid> = tasks.iter().map(|task| task.job_id).collect();
    let statement = sqlx::query_as!(
        Row,
        r#"-- recover_claim
        WITH free AS MATERIALIZED (
            SELECT id FROM webhook_jobs WHERE id = ANY($1) AND status = 'processing' AND claimed_by = $2
            -- What somebody holds is refused, and found when its lease has ended.
            FOR UPDATE SKIP LOCKED
        )
        UPDATE webhook_jobs AS job SET updated_at = now(),
            lease_until = now() + make_interval(secs => coalesce(job.timeout_ms / 1000.0::float8, $3) + $4)
        FROM free
        WHERE job.id = ANY($1) AND job.id = free.id
        RETURNING job.id AS job_id, job.attempt, job.retry_count, job.max_attempts, job.timeout_ms,
                  job.ordering_key IS NOT NULL AS "ordered!",
                  job.client_url AS "client_url: Readable<String>", job.payload AS "payload: Readable<String>",
                  job.headers AS "headers: Readable<serde_json::Value>",
                  job.updated_at AS started_at, job.created_at, job.sealed_key,
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
async fn add_destination_keys(connection: &mut PgConnection, rows: Vec<Row>) -> Result<Vec<Claimed>, sqlx::Error> {
    let mut claimed: Vec<Claimed> = rows.into_iter().map(Claimed::from).collect();
    let may_have_keys = |job: &&Claimed| job.destination_keys.is_some();
    let destinations: Vec<Destination> = claimed.iter().filter(may_have_keys).filter_map(destination_of).collect();
    if destinations.is_empty() {
        return Ok(claimed);
    }
    let keys = match store::signing_now(connection, &destinations).await {
        // The jobs are claimed already: a key that is damaged is no reason to claim them once more.
        Err(error) if is_of_one_row(&error) => {
            return Err(sqlx::Error::Protocol(format!("cannot read the destinations' keys: {error}")));
        }
        keys => keys?,
    };
    for job in claimed.iter_mut().filter(|job| job.destination_keys.is_some()) {
        job.destination_keys = destination_of(job).and_then(|destination| keys.get(destination.as_str()).cloned());
    }
    Ok(claimed)
}

/// `None` for a URL that will be refused: `outhook.enqueue` lets some of those through.
fn destination_of(job: &Claimed) -> Option<Destination> {
    Url::parse(&job.client_url).ok().map(|url| Destination::of(&url))
}
