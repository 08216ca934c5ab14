//! Rows that somebody held when they should have been touched: they are on a list, and due again once they are free.

use tokio_postgres::{Error, GenericClient};

use crate::service::database::is_of_one_row;

/// What a look at the rows that wait for somebody's lock came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Rows that are due now.
    pub due: i32,
    /// Rows that are still held.
    pub busy: i32,
    /// Where to go on.
    pub last_id: i64,
}

/// Makes rows due again that nobody holds any more, of up to `limit` lines of `outbox_checks` from `from_id` on. Of
/// fewer, if Postgres cannot read the job of one.
///
/// # Errors
/// The database cannot be asked.
pub async fn make_due_again(client: &impl GenericClient, from_id: i64, mut limit: i32) -> Result<Checked, Error> {
    let statement = "-- make_due_again
        SELECT due, busy, last_id FROM outhook.make_due_again($1, $2)";
    let row = loop {
        match client.query_one(statement, &[&from_id, &limit]).await {
            // That one alone is stepped over.
            Err(error) if limit > 1 && is_of_one_row(&error) => limit /= 2,
            row => break row?,
        }
    };
    Ok(Checked { due: row.get("due"), busy: row.get("busy"), last_id: row.get("last_id") })
}
