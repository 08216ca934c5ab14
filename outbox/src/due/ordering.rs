//! Deliveries in order: jobs of one key and destination go one after the other, a retry holding the next ones back.
//!
//! A row with a key waits until it is given its turn, and keeps that until it is deleted. Only the relays give turns,
//! by [`give_turns`]; an index of the database lets one row of a key have it. Whoever inserts a row that waits, or deletes
//! one that has its turn, leaves a line in `ordering_checks` with it (a trigger does; [`line_up`] does it by itself), and
//! looks at no other row: so nobody waits for anybody, and whatever is killed, the line is there. A turn is committed before its row is published,
//! so it is known also to the successor of a relay that was killed in between.

use tokio_postgres::{Error, GenericClient};

use super::row::DueRow;
use super::statements::Statements;

/// What a look at the keys came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Rows that have their turn now.
    pub rows: i32,
    /// Keys whose first row somebody holds.
    pub busy: i32,
    /// Lines that were gone through.
    pub lines: i32,
    /// Where to go on.
    pub last_id: i64,
}

/// Gives turns to the keys of up to `limit` lines of `ordering_checks` from `from_id` on.
///
/// # Errors
/// The database cannot be asked.
pub async fn give_turns(
    client: &impl GenericClient,
    statements: &Statements,
    from_id: i64,
    limit: i32,
) -> Result<Given, Error> {
    let row = client.query_one(&statements.give_turns, &[&from_id, &limit]).await?;
    Ok(Given { rows: row.get("given"), busy: row.get("busy"), lines: row.get("lines"), last_id: row.get("last_id") })
}

/// Lets rows wait for their turn whose scheduled time has come. Returns the others.
///
/// # Errors
/// The database cannot be asked.
pub async fn line_up(transaction: &impl GenericClient, rows: Vec<DueRow>) -> Result<Vec<DueRow>, Error> {
    let (early, ready): (Vec<DueRow>, Vec<DueRow>) = rows.into_iter().partition(|row| row.has_no_turn);
    if !early.is_empty() {
        let ids: Vec<i64> = early.iter().map(DueRow::id).collect();
        let statement = "-- wait_for_turn
            WITH waiting AS (
                UPDATE outbox SET waits_for = 'order' WHERE id = ANY($1) RETURNING destination, ordering_key
            )
            INSERT INTO ordering_checks (destination, ordering_key) SELECT DISTINCT * FROM waiting";
        transaction.execute(statement, &[&ids]).await?;
    }
    Ok(ready)
}
