//! Finds and locks what is due.

use std::time::SystemTime;

use tokio_postgres::{Error, GenericClient};

use super::row::DueRow;
use super::statements::Statements;
use crate::destination::Destination;

/// Locks up to `limit` rows that are due and that nobody holds, those longest due first; with `since`, only rows that
/// became due then or later.
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

/// Locks those of the rows that are still due and that nobody holds.
///
/// # Errors
/// The database cannot be asked.
pub async fn claim_chosen(
    transaction: &impl GenericClient,
    statements: &Statements,
    ids: &[i64],
) -> Result<Vec<DueRow>, Error> {
    let rows = transaction.query(&statements.claim_chosen, &[&ids]).await?;
    Ok(rows.iter().map(DueRow::from_row).collect())
}

/// Where a scan of what is due has come to: by due time, and by id among rows of the same moment.
pub type Position = (SystemTime, i64);

/// Reads up to `limit` rows that are due after a position, without locking them: where each stands, and its destination.
///
/// # Errors
/// The database cannot be asked.
pub async fn scan_due(
    client: &impl GenericClient,
    statements: &Statements,
    limit: i64,
    after: Option<Position>,
) -> Result<Vec<(Position, Destination)>, Error> {
    let (due_at, id) = after.unzip();
    let rows = client.query(&statements.scan_due, &[&limit, &due_at, &id.unwrap_or(i64::MIN)]).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let destination: String = row.try_get("destination").unwrap_or_default();
            ((row.get("due_at"), row.get("id")), destination.into())
        })
        .collect())
}

/// For how many seconds something is due that has been since `due_at`, by the database's clock.
///
/// # Errors
/// The database cannot be asked.
pub async fn age(client: &impl GenericClient, due_at: SystemTime) -> Result<f64, Error> {
    let row = client.query_one("SELECT extract(epoch FROM now() - $1::timestamptz)::float8", &[&due_at]).await?;
    Ok(row.get(0))
}
