//! Makes due again what was published, when the broker has lost it all.

use std::time::{Duration, SystemTime};

use tokio_postgres::{Error, GenericClient};

use super::claim::Position;

/// Goes through up to `limit` rows that are due within `horizon`, after a position, and makes those due at once that were
/// published, because the broker lost their tasks. What somebody holds is put on the list of those to look at again:
/// also what is due, since another relay may have published it a moment ago and is about to record that. Returns how
/// many rows that were, and the position to go on from; `None` when there are no more.
///
/// # Errors
/// The database cannot be asked.
pub async fn rewind(
    client: &impl GenericClient,
    limit: i64,
    horizon: Duration,
    after: Option<Position>,
) -> Result<(u64, Option<Position>), Error> {
    let (due_at, id) = after.unzip();
    let row = client
        .query_one(
            "-- rewind
            WITH page AS MATERIALIZED (
                SELECT id, due_at, attempt, published_at IS NOT NULL OR due_at <= now() AS may_be_lost FROM outbox
                WHERE waits_for IS NULL AND (due_at, id) > (coalesce($2::timestamptz, '-infinity'), $3::bigint)
                  AND due_at <= now() + make_interval(secs => $4)
                ORDER BY due_at, id
                LIMIT $1
            ), free AS MATERIALIZED (
                SELECT id, published_at, due_at FROM outbox
                WHERE id = ANY(ARRAY(SELECT id FROM page WHERE may_be_lost))
                FOR UPDATE SKIP LOCKED
            ), moved AS (
                UPDATE outbox SET due_at = now()
                WHERE id = ANY(ARRAY(SELECT id FROM free WHERE published_at IS NOT NULL AND due_at > now()))
                RETURNING id
            ), held AS (
                INSERT INTO outbox_checks (outbox_id, attempt)
                SELECT id, attempt FROM page WHERE may_be_lost AND id NOT IN (SELECT id FROM free)
            )
            SELECT (SELECT count(*) FROM moved) AS moved, last.id, last.due_at
            FROM (SELECT) AS one LEFT JOIN (SELECT id, due_at FROM page ORDER BY due_at DESC, id DESC LIMIT 1) AS last ON true",
            &[&limit, &due_at, &id.unwrap_or(i64::MIN), &horizon.as_secs_f64()],
        )
        .await?;
    let last = row.get::<_, Option<SystemTime>>("due_at").zip(row.get::<_, Option<i64>>("id"));
    Ok((row.get::<_, i64>("moved").cast_unsigned(), last))
}
