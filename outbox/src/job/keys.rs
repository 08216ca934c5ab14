//! How long idempotency keys hold. They are taken in [`super::accept`].

use std::time::{Duration, SystemTime};

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

/// Its own time was over, or before that the time that the session may wait for a lock.
const TOO_LONG: [SqlState; 2] = [SqlState::QUERY_CANCELED, SqlState::LOCK_NOT_AVAILABLE];

/// What became of a look at old keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// Keys that were deleted.
    pub keys: u32,
    /// Where to go on.
    pub last: SystemTime,
}

/// Forgets up to `limit` keys that are older than so many days, the oldest first, but none from before `since`; steps over
/// those that somebody holds. `None` if that takes longer than `time`: it must step over very many that are gone already and that
/// somebody's open transaction could still see, or somebody has locked the table.
///
/// # Errors
/// The database cannot be asked.
pub async fn forget_keys(
    client: &mut Client,
    days: u16,
    since: Option<SystemTime>,
    limit: u16,
    time: Duration,
) -> Result<Option<Forgotten>, Error> {
    let transaction = client.transaction().await?;
    let bound = format!("SET LOCAL statement_timeout = '{}ms'", time.as_millis());
    transaction.batch_execute(&bound).await?;
    let statement = "-- forget_keys
        SELECT forgotten, last FROM outhook.forget_keys($1, $2, $3)";
    let row = match transaction.query_one(statement, &[&i32::from(days), &since, &i32::from(limit)]).await {
        Err(error) if error.code().is_some_and(|code| TOO_LONG.contains(code)) => return Ok(None),
        row => row?,
    };
    transaction.commit().await?;
    Ok(Some(Forgotten { keys: row.get::<_, i32>("forgotten").unsigned_abs(), last: row.get("last") }))
}
