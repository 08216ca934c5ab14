//! What a relay has to do for destinations, and what it forgets of them.

use std::collections::HashMap;

use tokio_postgres::{Error, GenericClient};

use crate::due::Statements;

/// What there is to do, asked before anything else: most often nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "one answer for each question, all asked at once")]
pub struct Work {
    /// Some destination is not closed.
    pub sick: bool,
    /// Some row waits for its destination.
    pub held: bool,
    /// Some row waits for somebody's lock to end.
    pub checks: bool,
    /// Some ordering key may have a turn to give.
    pub turns: bool,
    /// Some pause is over, or some destination may be forgotten.
    pub leftovers: bool,
}

/// Asks what there is to do; lines of `outbox_checks` count from `from_check` on, those of `ordering_checks` from
/// `from_key` on.
///
/// # Errors
/// The database cannot be asked.
pub async fn work(
    client: &impl GenericClient,
    statements: &Statements,
    from_check: i64,
    from_key: i64,
) -> Result<Work, Error> {
    let row = client.query_one(&statements.what_to_do, &[&from_check, &from_key]).await?;
    Ok(Work {
        sick: row.get("sick"),
        held: row.get("held"),
        checks: row.get("checks"),
        turns: row.get("turns"),
        leftovers: row.get("leftovers"),
    })
}

/// How many destinations are in which state that is not `closed`; no more than `most` are counted.
///
/// # Errors
/// The database cannot be asked.
pub async fn count_sick(client: &impl GenericClient, most: i64) -> Result<HashMap<String, u32>, Error> {
    let rows = client
        .query(
            "-- count_sick
            SELECT state, count(*)::integer AS count
            FROM (SELECT state FROM destinations WHERE state <> 'closed' ORDER BY hold_until LIMIT $1) AS sick
            GROUP BY state",
            &[&most],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get("state"), row.get::<_, i32>("count").unsigned_abs())).collect())
}

/// Forgets pauses that are over, and destinations that have been well for an hour: so long a breaker remembers.
///
/// # Errors
/// The database cannot be asked.
pub async fn forget(client: &impl GenericClient) -> Result<(), Error> {
    client
        .execute(
            "-- forget_pauses
            DELETE FROM url_pauses WHERE url = ANY (ARRAY(
                SELECT url FROM url_pauses WHERE until < now() ORDER BY until LIMIT 1000 FOR UPDATE SKIP LOCKED))",
            &[],
        )
        .await?;
    client
        .execute(
            "-- forget_destinations
            DELETE FROM destinations WHERE destination = ANY (ARRAY(
                SELECT destination FROM destinations
                WHERE state = 'closed' AND rate_limit IS NULL AND changed_at < now() - interval '1 hour'
                ORDER BY changed_at LIMIT 1000 FOR UPDATE SKIP LOCKED))",
            &[],
        )
        .await?;
    Ok(())
}
