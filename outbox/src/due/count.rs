//! How many rows of the outbox are in which state.

use tokio_postgres::{Error, GenericClient};

/// Rows by state: in all of these a webhook waits for something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// To be published, and not yet taken by a relay.
    pub due: u32,
    /// Published: the task is in the queue, or with a worker.
    pub published: u32,
    /// A retry or a scheduled delivery, before its time.
    pub scheduled: u32,
    /// Held until the destination takes more.
    pub held: u32,
    /// Held until an earlier job of the same ordering key is finished.
    pub ordered: u32,
}

/// Counts the rows, up to `most` that are due, `most` that will be, those soonest first, and `most` of each kind of those
/// that wait. Each is counted along its index; but what was deleted a moment ago is gone through as well, and while
/// somebody's transaction is open that can be much: it is the caller's to ask seldom.
///
/// # Errors
/// The database cannot be asked.
pub async fn count(client: &impl GenericClient, most: i64) -> Result<Counted, Error> {
    let row = client
        .query_one(
            "-- count_rows
            WITH later AS MATERIALIZED (
                SELECT published_at IS NOT NULL AS published FROM outbox
                WHERE waits_for IS NULL AND due_at > now() ORDER BY due_at, id LIMIT $1
            )
            SELECT (SELECT count(*)::integer FROM
                       (SELECT FROM outbox WHERE waits_for IS NULL AND due_at <= now() ORDER BY due_at, id LIMIT $1) AS due) AS due,
                   (SELECT count(*)::integer FROM later WHERE published) AS published,
                   (SELECT count(*)::integer FROM later WHERE NOT published) AS scheduled,
                   (SELECT count(*)::integer FROM
                       (SELECT FROM outbox WHERE waits_for = 'destination' ORDER BY destination LIMIT $1) AS held) AS held,
                   (SELECT count(*)::integer FROM
                       (SELECT FROM outbox WHERE waits_for = 'order' ORDER BY destination LIMIT $1) AS ordered) AS ordered",
            &[&most],
        )
        .await?;
    let count = |state| row.get::<_, i32>(state).unsigned_abs();
    Ok(Counted {
        due: count("due"),
        published: count("published"),
        scheduled: count("scheduled"),
        held: count("held"),
        ordered: count("ordered"),
    })
}
