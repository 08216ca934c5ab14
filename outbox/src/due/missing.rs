//! What RabbitMQ has lost without a word: purged by somebody, dropped by a policy, taken by another program.
//!
//! A row that is published, whose job nobody has claimed, has its task in the queue or in a worker's hands. Workers say
//! again and again of what waits with them that it does ([`still_held`]); so what nobody has said that of for a while, and
//! is not in the queue either, is lost. Should it turn up all the same, its claim is refused.

use std::time::{Duration, SystemTime};

use tokio_postgres::{Client, Error};

use super::claim::Position;
use crate::broker::task::Task;
use crate::service::database::{Pool, is_of_one_row, on_connection};

/// What is published, not claimed, and not said to be held, for longer than this, is in the queue or lost. Workers say it
/// of what they have held for a second, each two seconds.
pub const LOST_AFTER: Duration = Duration::from_secs(6);

/// A page of published rows.
#[derive(Clone, Debug)]
pub struct Page {
    /// Those whose tasks are in the queue or lost, the oldest first.
    pub unclaimed: Vec<i64>,
    /// Where to go on; `None` when there are no more.
    pub next: Option<Position>,
}

/// Goes through up to `limit` rows that are due within `horizon`, after a position; through fewer if Postgres cannot read
/// the job of one.
///
/// # Errors
/// The database cannot be asked.
pub async fn find_unclaimed(
    client: &Client,
    limit: i64,
    horizon: Duration,
    after: Option<Position>,
) -> Result<Page, Error> {
    let (due_at, id) = after.unzip();
    let statement = "-- find_unclaimed
        WITH page AS MATERIALIZED (
            SELECT id, due_at, job_id, published_at < now() - make_interval(secs => $5) AS is_old FROM outbox
            WHERE waits_for IS NULL AND due_at > now() AND due_at <= now() + make_interval(secs => $4)
              AND (due_at, id) > (coalesce($2::timestamptz, '-infinity'), $3::bigint)
            ORDER BY due_at, id
            LIMIT $1
        ), pending AS MATERIALIZED (
            SELECT id FROM webhook_jobs
            WHERE id = ANY(ARRAY(SELECT job_id FROM page WHERE is_old)) AND status = 'pending'
        )
        SELECT ARRAY(SELECT id FROM page WHERE is_old AND job_id IN (SELECT id FROM pending) ORDER BY due_at, id) AS unclaimed,
               last.id, last.due_at
        FROM (SELECT) AS one
        LEFT JOIN (SELECT id, due_at FROM page ORDER BY due_at DESC, id DESC LIMIT 1) AS last
            ON (SELECT count(*) FROM page) = $1";
    let (horizon_sec, lost_after_sec) = (horizon.as_secs_f64(), LOST_AFTER.as_secs_f64());
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
        [&limit, &due_at, &id.unwrap_or(i64::MIN), &horizon_sec, &lost_after_sec];
    let row = match client.query_one(statement, &parameters).await {
        // By halves, and past the one that Postgres cannot read.
        Err(error) if is_of_one_row(&error) => {
            return if limit > 1 {
                Box::pin(find_unclaimed(client, limit / 2, horizon, after)).await
            } else {
                let next = step(client, horizon, after).await?;
                Ok(Page { unclaimed: Vec::new(), next })
            };
        }
        row => row?,
    };
    let next = row.get::<_, Option<SystemTime>>("due_at").zip(row.get::<_, Option<i64>>("id"));
    Ok(Page { unclaimed: row.get("unclaimed"), next })
}

/// The next position after this one.
async fn step(client: &Client, horizon: Duration, after: Option<Position>) -> Result<Option<Position>, Error> {
    let (due_at, id) = after.unzip();
    let statement = "-- step_over_unread
        SELECT id, due_at FROM outbox
        WHERE waits_for IS NULL AND due_at > now() AND due_at <= now() + make_interval(secs => $3)
          AND (due_at, id) > (coalesce($1::timestamptz, '-infinity'), $2::bigint)
        ORDER BY due_at, id
        LIMIT 1";
    let row = client.query_opt(statement, &[&due_at, &id.unwrap_or(i64::MIN), &horizon.as_secs_f64()]).await?;
    Ok(row.map(|row| (row.get("due_at"), row.get("id"))))
}

/// Makes rows due again whose tasks are lost, unless somebody holds them or said meanwhile that he does. Those on the
/// list of rows that somebody held are not: their tasks were given back. Returns how many that were.
///
/// # Errors
/// The database cannot be asked.
pub async fn make_due(client: &Client, rows: &[i64]) -> Result<u64, Error> {
    let statement = "-- make_missing_due
        WITH free AS MATERIALIZED (
            SELECT id FROM outbox
            WHERE id = ANY($1) AND coalesce(waits_for, '') = '' AND published_at < now() - make_interval(secs => $2)
              AND id NOT IN (SELECT outbox_id FROM outbox_checks)
            FOR UPDATE SKIP LOCKED
        )
        UPDATE outbox SET due_at = now() WHERE id = ANY(ARRAY(SELECT id FROM free))";
    client.execute(statement, &[&rows, &LOST_AFTER.as_secs_f64()]).await
}

/// Says of tasks that wait for a slot that they are not lost. Waits for nobody.
///
/// # Errors
/// The database cannot be asked.
pub async fn still_held(pool: &Pool, tasks: &[Task]) -> Result<(), sqlx::Error> {
    let rows: Vec<i64> = tasks.iter().map(|task| task.outbox_id).collect();
    let attempts: Vec<i32> = tasks.iter().map(|task| task.attempt).collect();
    let statement = sqlx::query!(
        "-- still_held
        WITH free AS MATERIALIZED (
            SELECT outbox.id FROM unnest($1::bigint[], $2::integer[]) AS task (outbox_id, attempt)
            JOIN outbox ON outbox.id = ANY($1) AND outbox.id = task.outbox_id AND outbox.attempt = task.attempt
            WHERE coalesce(waits_for, '') = '' AND published_at IS NOT NULL
            FOR UPDATE OF outbox SKIP LOCKED
        )
        UPDATE outbox SET published_at = now() WHERE id = ANY(ARRAY(SELECT id FROM free))",
        &rows,
        &attempts,
    );
    on_connection(pool, async |connection| statement.execute(connection).await).await.map(drop)
}
