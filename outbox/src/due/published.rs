//! Rows that are due although they were published.

use std::collections::HashSet;
use std::time::Duration;

use tokio_postgres::{Error, GenericClient, Row};
use tracing::error;
use uuid::Uuid;

use super::row::DueRow;
use crate::service::database::is_of_one_row;

/// How long a row is left alone whose job Postgres cannot read.
const UNREADABLE_DELAY: Duration = Duration::from_secs(30);

/// Puts right the rows that are due although they were published, and returns what is to be published.
///
/// A job that a worker holds under a lease is looked at again when the lease ends; the row of a finished
/// job has no business here and is deleted. Any other is taken as lost on its way: it is published again, unless its
/// destination is sick, which it waits for then.
///
/// # Errors
/// The database cannot be asked.
pub async fn sift_published(transaction: &impl GenericClient, due: Vec<DueRow>) -> Result<Vec<DueRow>, Error> {
    let again: Vec<&DueRow> = due.iter().filter(|row| row.was_published).collect();
    let mut settled = HashSet::new();
    let mut unreadable = Vec::new();
    let mut parts = if again.is_empty() { Vec::new() } else { vec![&again[..]] };
    while let Some(rows) = parts.pop() {
        transaction.batch_execute("SAVEPOINT sift_published").await?;
        match sift_published_together(transaction, rows).await {
            Ok(ids) => {
                transaction.batch_execute("RELEASE SAVEPOINT sift_published").await?;
                settled.extend(ids);
            }
            // By halves, until it is alone.
            Err(error) if is_of_one_row(&error) => {
                transaction.batch_execute("ROLLBACK TO SAVEPOINT sift_published").await?;
                if let [row] = rows {
                    error!(%error, job_id = %row.task.job_id, "Postgres cannot read a job; it is tried again in a while");
                    unreadable.push(row.id());
                } else {
                    let (first, second) = rows.split_at(rows.len() / 2);
                    parts.extend([first, second]);
                }
            }
            Err(error) => return Err(error),
        }
    }
    if !unreadable.is_empty() {
        put_off(transaction, &unreadable).await?;
        settled.extend(unreadable);
    }
    Ok(due.into_iter().filter(|row| !settled.contains(&row.id())).collect())
}

/// Puts rows off whose jobs cannot be read. They do not count as published meanwhile: whoever looks for lost tasks has
/// to read the jobs of those that do.
async fn put_off(transaction: &impl GenericClient, ids: &[i64]) -> Result<(), Error> {
    let statement = "-- put_off_unread
        UPDATE outbox SET published_at = NULL, due_at = statement_timestamp() + make_interval(secs => $2)
        WHERE id = ANY($1)";
    transaction.execute(statement, &[&ids, &UNREADABLE_DELAY.as_secs_f64()]).await?;
    Ok(())
}

/// Returns those that are not to be published.
async fn sift_published_together(transaction: &impl GenericClient, due: &[&DueRow]) -> Result<Vec<i64>, Error> {
    let ids: Vec<i64> = due.iter().map(|row| row.id()).collect();
    let leased = transaction
        .query(
            "-- wait_for_lease
            UPDATE outbox AS outbox_row SET due_at = job.lease_until
            FROM webhook_jobs AS job
            WHERE outbox_row.id = ANY($1) AND job.id = outbox_row.job_id AND job.lease_until > now()
            RETURNING outbox_row.id",
            &[&ids],
        )
        .await?;
    let finished = transaction
        .query(
            "-- delete_finished
            DELETE FROM outbox AS outbox_row
            WHERE id = ANY($1) AND NOT EXISTS (
                SELECT FROM webhook_jobs AS job WHERE job.id = outbox_row.job_id AND job.status IN ('pending', 'processing'))
            RETURNING id",
            &[&ids],
        )
        .await?;
    let held = hold_again(transaction, due).await?;
    Ok(leased.iter().chain(&finished).chain(&held).map(|row| row.get("id")).collect())
}

/// Holds those of the rows whose job is free and whose destination is sick. Not one whose lease has ended: its task
/// makes a worker take it over.
async fn hold_again(transaction: &impl GenericClient, due: &[&DueRow]) -> Result<Vec<Row>, Error> {
    let held_back = due.iter().filter(|row| row.is_held_back);
    let (rows, jobs): (Vec<i64>, Vec<Uuid>) = held_back.map(|row| (row.id(), row.task.job_id)).unzip();
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let statement = "-- hold_again
        UPDATE outbox AS outbox_row SET waits_for = 'destination', published_at = NULL, due_at = now()
        FROM webhook_jobs AS job
        WHERE outbox_row.id = ANY($1) AND job.id = ANY($2) AND job.id = outbox_row.job_id AND job.status = 'pending'
        RETURNING outbox_row.id";
    transaction.query(statement, &[&rows, &jobs]).await
}
