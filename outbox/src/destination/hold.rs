//! Holds rows of the outbox for destinations that are sick, and finds those that are held for nothing.

use std::time::SystemTime;

use tokio_postgres::{Error, GenericClient};
use uuid::Uuid;

use crate::broker::task::Task;
use crate::service::database::{Pool, on_connection};

/// Destinations that are gone through in one statement.
const BATCH: i32 = 500;

/// Rows that wait although nothing is to be waited for, set free in one statement.
const STRAYS: i64 = 2_000;

/// Holds up to `limit` rows that are due, since `since` if it says so, for destinations that are sick, those longest due
/// first: [`crate::due::claim_due`] steps over them until then. Returns how many, and the moment to go on from.
///
/// Only rows that are not published: a job may be under way for one that is due again, and that is put right first.
///
/// # Errors
/// The database cannot be asked.
pub async fn hold_due(
    client: &impl GenericClient,
    limit: i64,
    since: Option<SystemTime>,
) -> Result<(u64, Option<SystemTime>), Error> {
    let row = client
        .query_one(
            "-- hold_due
            WITH chosen AS MATERIALIZED (
                SELECT id, due_at FROM outbox
                WHERE waits_for IS NULL AND due_at <= now() AND due_at >= coalesce($2::timestamptz, '-infinity')
                  AND NOT released AND published_at IS NULL AND (ordering_key IS NULL OR turn)
                  AND (SELECT state FROM destinations
                       WHERE destinations.destination = outbox.destination AND state <> 'closed') IS NOT NULL
                ORDER BY due_at, id
                LIMIT $1
                FOR UPDATE SKIP LOCKED
            ), held AS (
                UPDATE outbox SET waits_for = 'destination', due_at = now() WHERE id = ANY (ARRAY(SELECT id FROM chosen))
            )
            -- Where to go on: after the last one, or, when that were all, from now on.
            SELECT count(*) AS rows, CASE WHEN count(*) < $1 THEN now() ELSE max(due_at) END AS last FROM chosen",
            &[&limit, &since],
        )
        .await?;
    Ok((row.get::<_, i64>("rows").cast_unsigned(), row.get("last")))
}

/// Sets free what is held for destinations that are well, whoever made them so: a limit was lifted, a row was held just
/// when its destination was closed, somebody repaired something by hand. Goes through the destinations that anything is
/// held for, from one name on, some at a time. Returns the name to go on from, empty for the beginning, and how many
/// rows were set free.
///
/// # Errors
/// The database cannot be asked.
pub async fn free_strays(client: &impl GenericClient, from: &str) -> Result<(String, u64), Error> {
    let row = client
        .query_one(
            "-- free_strays
            WITH RECURSIVE held (destination, place) AS (
                (SELECT destination, 1 FROM outbox
                 WHERE waits_for = 'destination' AND destination > $1 ORDER BY destination LIMIT 1)
                UNION ALL
                SELECT (SELECT outbox.destination FROM outbox
                        WHERE waits_for = 'destination' AND outbox.destination > held.destination
                        ORDER BY outbox.destination LIMIT 1), place + 1
                FROM held WHERE held.destination IS NOT NULL AND place < $2
            ), stray AS MATERIALIZED (
                SELECT free.id
                FROM held CROSS JOIN LATERAL (
                    SELECT id FROM outbox
                    WHERE outbox.destination = held.destination AND waits_for = 'destination'
                    ORDER BY attempt, id
                    LIMIT $3
                    FOR UPDATE SKIP LOCKED
                ) AS free
                WHERE NOT EXISTS (SELECT FROM destinations
                                  WHERE destinations.destination = held.destination AND state <> 'closed')
                LIMIT $3
            ), freed AS (
                UPDATE outbox SET due_at = now(), waits_for = NULL, released = true
                WHERE id = ANY (ARRAY(SELECT id FROM stray))
                RETURNING id
            )
            SELECT coalesce((SELECT destination FROM held WHERE place = $2), '') AS next, (SELECT count(*) FROM freed) AS freed",
            &[&from, &BATCH, &STRAYS],
        )
        .await?;
    Ok((row.get("next"), row.get::<_, i64>("freed").cast_unsigned()))
}

/// Holds the jobs of tasks that were not claimed: their rows wait for their destination, as if the relay had not
/// published them. Returns their outbox rows; the others are held by somebody or no longer free to be attempted, and
/// nothing was changed about them.
///
/// # Errors
/// The database cannot be asked.
pub async fn hold_published(pool: &Pool, tasks: &[Task]) -> Result<Vec<i64>, sqlx::Error> {
    let rows: Vec<i64> = tasks.iter().map(|task| task.outbox_id).collect();
    let job_ids: Vec<Uuid> = tasks.iter().map(|task| task.job_id).collect();
    let attempts: Vec<i32> = tasks.iter().map(|task| task.attempt).collect();
    let statement = sqlx::query_scalar!(
        "-- hold_published
        WITH free AS MATERIALIZED (
            SELECT outbox.id, sick.destination IS NOT NULL AS is_sick
            FROM unnest($1::bigint[], $2::uuid[], $3::integer[]) AS task (outbox_id, job_id, attempt)
            JOIN webhook_jobs AS job
                ON job.id = ANY($2) AND job.id = task.job_id AND job.status = 'pending' AND job.attempt = task.attempt
            JOIN outbox ON outbox.id = ANY($1) AND outbox.id = task.outbox_id AND outbox.attempt = task.attempt
            LEFT JOIN destinations AS sick ON sick.destination = outbox.destination AND sick.state <> 'closed'
            WHERE coalesce(outbox.waits_for, '') = ''
            FOR UPDATE OF outbox, job SKIP LOCKED
        )
        UPDATE outbox
        SET released = false, published_at = NULL,
            -- If it is well again, nothing is to be waited for.
            waits_for = CASE WHEN is_sick THEN 'destination' END,
            due_at = now() + CASE WHEN is_sick THEN interval '0' ELSE interval '1 second' END
        FROM free WHERE outbox.id = ANY($1) AND outbox.id = free.id
        RETURNING outbox.id",
        &rows,
        &job_ids,
        &attempts,
    );
    on_connection(pool, async |connection| statement.fetch_all(connection).await).await
}
