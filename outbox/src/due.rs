//! What the relay does with the outbox: finds what is due, marks what was published.
//!
//! The rows stay locked from [`claim_due`] to the commit of the same transaction. A relay that dies in
//! between frees them at once, and the next one publishes the same message ids again.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use tokio_postgres::{Client, Error, GenericClient, Row, Statement};
use uuid::Uuid;

use crate::database::PLANNER;
use crate::message::Message;

/// An outbox row whose alarm rings.
#[derive(Clone, Debug)]
pub struct DueRow {
    /// Its AMQP `message_id`, the same however often it is published.
    pub message_id: Uuid,
    /// Whether it was recorded as published before.
    pub rings_again: bool,
    /// Its key, if it must wait for its turn: see [`crate::ordering`].
    pub ordering_key: Option<String>,
    /// Since when it is due, by the database's clock.
    pub due_at: SystemTime,
    /// The message to publish; holds the row's id.
    pub message: Message,
}

impl DueRow {
    fn from_row(row: &Row) -> Self {
        Self {
            message_id: row.get("message_id"),
            rings_again: row.get("rings_again"),
            ordering_key: row.get("ordering_key"),
            due_at: row.get("due_at"),
            message: Message::new(row.get("job_id"), row.get("attempt"), row.get("id"), row.get("traceparent"))
                .to(row.get("destination"), row.get("released")),
        }
    }

    /// The row's id in `outbox`.
    #[must_use]
    pub const fn id(&self) -> i64 {
        self.message.outbox_id
    }
}

/// The statements of every turn, prepared on one connection: planning them costs more than running them.
#[derive(Clone, Debug)]
pub struct Statements {
    claim_due: Statement,
    mark_published: Statement,
    next_due: Statement,
}

impl Statements {
    /// Prepares them.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn prepare(client: &Client) -> Result<Self, Error> {
        for (setting, value) in PLANNER {
            client.batch_execute(&format!("SET {setting} = {value}")).await?;
        }
        Ok(Self {
            claim_due: client.prepare(CLAIM_DUE).await?,
            mark_published: client.prepare(MARK_PUBLISHED).await?,
            next_due: client.prepare(NEXT_DUE).await?,
        })
    }
}

// By due time, never by "id > last seen": ids are given out before they commit, in another order. And not by id
// besides: rows of one transaction are due at the same moment, and each turn would read and sort all of them.
const CLAIM_DUE: &str = "-- claim_due
    SELECT id, due_at, job_id, attempt, message_id, traceparent, destination, released, ordering_key,
           published_at IS NOT NULL AS rings_again
    FROM outbox
    WHERE due_at <= now() AND due_at >= coalesce($2::timestamptz, '-infinity')
      AND (released OR destination NOT IN (
          SELECT destinations.destination FROM destinations WHERE state <> 'closed' OR rate_limit IS NOT NULL))
    ORDER BY due_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED";

const MARK_PUBLISHED: &str = "-- mark_published
    UPDATE outbox
    SET waits_for = NULL, published_at = statement_timestamp(), due_at = statement_timestamp() + make_interval(secs => $2)
    WHERE id = ANY($1)";

const NEXT_DUE: &str = "-- next_due
    SELECT extract(epoch FROM least(
        (SELECT due_at FROM outbox WHERE due_at > now() ORDER BY due_at LIMIT 1),
        (SELECT min(hold_until) FROM destinations
         WHERE (state <> 'closed' OR rate_limit IS NOT NULL) AND hold_until > now())) - now())::float8";

/// Locks up to `limit` rows that are due and that no other relay holds, those longest due first; with
/// `since`, only rows that became due then or later. Rows of destinations that are sick or limited are left to
/// [`crate::destination`], unless they were set free there.
///
/// # Errors
/// The database cannot be asked.
pub async fn claim_due(
    transaction: &impl GenericClient,
    statements: &Statements,
    limit: i64,
    since: Option<SystemTime>,
) -> Result<Vec<DueRow>, Error> {
    let rows = transaction.query(&statements.claim_due, &[&limit, &since]).await?;
    Ok(rows.iter().map(DueRow::from_row).collect())
}

/// Puts right the rows that ring although they were published, and returns what is to be published.
///
/// A job that a worker holds under a lease is looked at again when the lease ends; the row of a finished
/// job has no business here and is deleted. Any other is taken as lost on its way: it is published again.
///
/// # Errors
/// The database cannot be asked.
pub async fn put_right(transaction: &impl GenericClient, due: Vec<DueRow>) -> Result<Vec<DueRow>, Error> {
    let ringing: Vec<i64> = due.iter().filter(|row| row.rings_again).map(DueRow::id).collect();
    if ringing.is_empty() {
        return Ok(due);
    }
    let leased = transaction
        .query(
            "-- wait_for_lease
            UPDATE outbox AS alarm SET due_at = job.lease_until
            FROM webhook_jobs AS job
            WHERE alarm.id = ANY($1) AND job.id = alarm.job_id AND job.lease_until > now()
            RETURNING alarm.id",
            &[&ringing],
        )
        .await?;
    let finished = transaction
        .query(
            "-- delete_finished
            DELETE FROM outbox AS alarm
            WHERE id = ANY($1) AND NOT EXISTS (
                SELECT FROM webhook_jobs AS job WHERE job.id = alarm.job_id AND job.status IN ('pending', 'processing'))
            RETURNING id",
            &[&ringing],
        )
        .await?;
    let settled: HashSet<i64> = leased.iter().chain(&finished).map(|row| row.get("id")).collect();
    Ok(due.into_iter().filter(|row| !settled.contains(&row.id())).collect())
}

/// Records that the broker confirmed these rows; should their messages get lost, they ring again after
/// `republish_after`.
///
/// # Errors
/// The database cannot be asked.
pub async fn mark_published(
    transaction: &impl GenericClient,
    statements: &Statements,
    ids: &[i64],
    republish_after: Duration,
) -> Result<(), Error> {
    let marked = transaction.execute(&statements.mark_published, &[&ids, &republish_after.as_secs_f64()]).await?;
    debug_assert_eq!(marked, ids.len() as u64, "the rows are locked since claim_due");
    Ok(())
}

/// Leaves rows that were not confirmed for later.
///
/// # Errors
/// The database cannot be asked.
pub async fn push_back(transaction: &impl GenericClient, ids: &[i64], delay: Duration) -> Result<(), Error> {
    transaction
        .execute(
            "-- push_back
            UPDATE outbox SET due_at = statement_timestamp() + make_interval(secs => $2) WHERE id = ANY($1)",
            &[&ids, &delay.as_secs_f64()],
        )
        .await?;
    Ok(())
}

/// How long until the next row becomes due, if there is one.
///
/// Rows that are due already do not count: they are held by another relay, or were just looked at. A
/// destination that is to be looked at counts as well.
///
/// # Errors
/// The database cannot be asked.
pub async fn next_due(client: &impl GenericClient, statements: &Statements) -> Result<Option<Duration>, Error> {
    let row = client.query_one(&statements.next_due, &[]).await?;
    let seconds: Option<f64> = row.get(0);
    Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)))
}

/// Makes up to `limit` published rows due at once, because the broker lost their messages. Returns how
/// many; fewer than `limit` means that no more are left.
///
/// # Errors
/// The database cannot be asked.
pub async fn rewind(client: &impl GenericClient, limit: i64) -> Result<u64, Error> {
    client
        .execute(
            "-- rewind
            UPDATE outbox SET due_at = now()
            WHERE id IN (
                SELECT id FROM outbox
                WHERE due_at > now() AND published_at IS NOT NULL
                LIMIT $1
                FOR UPDATE SKIP LOCKED)",
            &[&limit],
        )
        .await
}
