//! Deliveries in order: jobs of one ordering key go one after the other, a retry holding the next ones back.
//!
//! The relay publishes a row that has a key only if its turn has come, and otherwise makes it wait for that;
//! whoever finishes a job makes the next one of its key due. Both hold the key's lock meanwhile, so that the
//! one sees what the other did: without it a row could be made to wait for a job that has just finished.
//! Accepting takes no lock: a caller's own long transaction holds nobody up.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use sqlx::PgConnection;
use tokio_postgres::{Error, GenericClient};

use crate::due::DueRow;
use crate::job::Status;
use crate::settle::Settlement;

/// Which rows with a key may be published now.
#[derive(Debug, Default)]
pub struct Turns {
    /// Rows whose turn has not come; the end of an earlier job makes them due.
    pub waiting: Vec<i64>,
    /// Rows whose key somebody else has locked: to be looked at again in a moment.
    pub busy: Vec<i64>,
}

/// Judges those of the rows that have a key and were never published. The rows must be locked. Their keys are locked
/// here until the end of the transaction, unless somebody has done so before: waiting for that could be waiting for
/// each other.
///
/// # Errors
/// The database cannot be asked.
pub async fn take_turns(transaction: &impl GenericClient, rows: &[DueRow]) -> Result<Turns, Error> {
    let mut turns = Turns::default();
    let keyed: Vec<&DueRow> = rows.iter().filter(|row| row.ordering_key.is_some()).collect();
    if keyed.is_empty() {
        return Ok(turns);
    }
    let keys: BTreeSet<&str> = keyed.iter().filter_map(|row| row.ordering_key.as_deref()).collect();
    let locked = lock_free(transaction, keys.into_iter().collect()).await?;
    let (mine, busy): (Vec<&DueRow>, Vec<&DueRow>) =
        keyed.into_iter().partition(|row| row.ordering_key.as_ref().is_some_and(|key| locked[key]));
    turns.busy = busy.into_iter().map(DueRow::id).collect();
    let ids: Vec<i64> = mine.into_iter().map(DueRow::id).collect();
    // A statement of its own, after the locks: the snapshot of an earlier one may not know what was finished.
    let waiting = transaction
        .query(
            "-- find_those_before
            SELECT id FROM outbox AS mine
            WHERE id = ANY($1) AND attempt = 0 AND published_at IS NULL AND EXISTS (
                SELECT FROM outbox AS other
                WHERE other.ordering_key = mine.ordering_key AND other.id <> mine.id
                  -- An earlier one, or one that has begun although it is later: their transactions committed
                  -- in another order than they got their numbers.
                  AND (other.id < mine.id OR other.attempt > 0 OR other.published_at IS NOT NULL))",
            &[&ids],
        )
        .await?;
    turns.waiting = waiting.iter().map(|row| row.get("id")).collect();
    Ok(turns)
}

async fn lock_free(transaction: &impl GenericClient, keys: Vec<&str>) -> Result<HashMap<String, bool>, Error> {
    let rows = transaction
        .query(
            "-- try_ordering_locks
            SELECT key, pg_try_advisory_xact_lock(outhook.ordering_lock(key)) AS locked FROM unnest($1::text[]) AS key",
            &[&keys],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get("key"), row.get("locked"))).collect())
}

/// Leaves rows until their turn comes, which makes them due; should that get lost, until `look_again`.
///
/// # Errors
/// The database cannot be asked.
pub async fn wait_for_turn(transaction: &impl GenericClient, ids: &[i64], look_again: Duration) -> Result<(), Error> {
    transaction
        .execute(
            "-- wait_for_turn
            UPDATE outbox SET waits_for = 'order', due_at = statement_timestamp() + make_interval(secs => $2)
            WHERE id = ANY($1)",
            &[&ids, &look_again.as_secs_f64()],
        )
        .await?;
    Ok(())
}

/// The keys of the jobs that end with these settlements.
pub(crate) fn finished_keys(settlements: &[Settlement]) -> Vec<String> {
    let finished = settlements.iter().filter(|settlement| settlement.status != Status::Pending);
    let keys: BTreeSet<&String> = finished.filter_map(|settlement| settlement.ordering_key.as_ref()).collect();
    keys.into_iter().cloned().collect()
}

/// Waits for the keys' locks, in the order that everybody takes them in.
pub(crate) async fn lock(connection: &mut PgConnection, keys: &[String]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "-- take_ordering_locks
        SELECT pg_advisory_xact_lock(lock)
        FROM (SELECT DISTINCT outhook.ordering_lock(key) AS lock FROM unnest($1::text[]) AS key ORDER BY 1) AS locks",
        keys
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}

/// Makes the next job of each key due, in the caller's transaction.
pub(crate) async fn release_next(connection: &mut PgConnection, keys: &[String]) -> Result<(), sqlx::Error> {
    // It looks each key up, unlike what else this connection does: crate::database::JOIN_BY_HASH.
    sqlx::query("SET LOCAL enable_nestloop = on").execute(&mut *connection).await?;
    sqlx::query!(
        "-- release_next
        SELECT outhook.release_next($1)",
        keys
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}
