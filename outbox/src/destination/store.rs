//! Stores what workers find out about destinations.

use std::time::Duration;

use sqlx::{Acquire, PgConnection};

use super::Destination;
use super::breaker::{Breaker, Change, CoolDown, Finding, State};
use crate::service::database::{Pool, on_connection};

/// Stores what a worker has found out about a destination. A row that somebody holds stays as it is: the next finding
/// comes soon.
///
/// # Errors
/// The database cannot be asked.
pub async fn report(
    pool: &Pool,
    destination: &Destination,
    finding: Finding,
    error: &str,
    cool_down: CoolDown,
) -> Result<(), sqlx::Error> {
    on_connection(pool, async |connection| {
        let mut transaction = connection.begin().await?;
        match lock(&mut transaction, destination).await? {
            Some(breaker) => {
                if let Some(change) = breaker.found(finding, cool_down) {
                    update(&mut transaction, destination, &breaker, &change, error).await?;
                }
            }
            None => {
                if let Some(change) = Breaker::default().found(finding, cool_down) {
                    insert(&mut transaction, destination, &change, error).await?;
                }
            }
        }
        transaction.commit().await
    })
    .await
}

async fn lock(connection: &mut PgConnection, destination: &Destination) -> Result<Option<Breaker>, sqlx::Error> {
    let row = sqlx::query!(
        r#"-- lock_destination
        SELECT state, openings, release_limit, extract(epoch FROM now() - changed_at)::float8 AS "changed_ago!",
               extract(epoch FROM now() - slowed_at)::float8 AS slowed_ago
        FROM destinations WHERE destination = $1 FOR UPDATE SKIP LOCKED"#,
        destination.as_str()
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Breaker {
        state: State::from_text(&row.state).expect("destinations_state_known"),
        openings: row.openings,
        release_limit: row.release_limit,
        changed_ago: seconds(row.changed_ago),
        slowed_ago: row.slowed_ago.map(seconds),
    }))
}

/// A moment in the future is now: clocks of one database run forward, but for a change of it.
pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

async fn update(
    connection: &mut PgConnection,
    destination: &Destination,
    before: &Breaker,
    Change { breaker, look_in }: &Change,
    error: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "-- move_destination
        UPDATE destinations
        SET state = $2, openings = $3, release_limit = $4, hold_until = now() + make_interval(secs => $5),
            changed_at = CASE WHEN state = $2 THEN changed_at ELSE now() END,
            slowed_at = now() - make_interval(secs => $6), error = $7
        WHERE destination = $1 AND state = $8",
        destination.as_str(),
        breaker.state.as_str(),
        breaker.openings,
        breaker.release_limit,
        look_in.as_secs_f64(),
        breaker.slowed_ago.map(|ago| ago.as_secs_f64()),
        error,
        before.state.as_str(),
    )
    .execute(connection)
    .await
    .map(drop)
}

async fn insert(
    connection: &mut PgConnection,
    destination: &Destination,
    Change { breaker, look_in }: &Change,
    error: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "-- add_destination
        INSERT INTO destinations (destination, state, openings, release_limit, hold_until, slowed_at, error)
        VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5), now() - make_interval(secs => $6), $7)
        -- It is there, and somebody holds it; or another worker was faster.
        ON CONFLICT (destination) DO NOTHING",
        destination.as_str(),
        breaker.state.as_str(),
        breaker.openings,
        breaker.release_limit,
        look_in.as_secs_f64(),
        breaker.slowed_ago.map(|ago| ago.as_secs_f64()),
        error,
    )
    .execute(connection)
    .await
    .map(drop)
}
