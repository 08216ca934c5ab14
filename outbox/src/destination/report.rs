//! The worker's side of a destination: what it has found out, what it gives back, and the slots of those with a limit.

use std::time::Duration;

use sqlx::{Acquire, PgConnection};
use uuid::Uuid;

use super::breaker::{Breaker, Change, CoolDown, Finding, State};
use crate::database::{Pool, on_connection};
use crate::message::Message;

/// Slots of a limit are reserved no further ahead than this, in seconds.
const SLOT_HORIZON: f64 = 0.5;

/// Between two slots there is this much more time than the limit asks for, so that what is late by some milliseconds
/// does not meet the next ones: no window of a second sees more than the limit.
const SLOT_MARGIN: f64 = 1.05;

/// Stores what a worker has found out about a destination. A row that somebody holds stays as it is: the next finding
/// comes soon.
///
/// # Errors
/// The database cannot be asked.
pub async fn report(
    pool: &Pool,
    destination: &str,
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

async fn lock(connection: &mut PgConnection, destination: &str) -> Result<Option<Breaker>, sqlx::Error> {
    let row = sqlx::query!(
        r#"-- lock_destination
        SELECT state, openings, release_limit, extract(epoch FROM now() - changed_at)::float8 AS "changed_ago!",
               extract(epoch FROM now() - slowed_at)::float8 AS slowed_ago
        FROM destinations WHERE destination = $1 FOR UPDATE SKIP LOCKED"#,
        destination
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
    destination: &str,
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
        destination,
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
    destination: &str,
    Change { breaker, look_in }: &Change,
    error: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "-- add_destination
        INSERT INTO destinations (destination, state, openings, release_limit, hold_until, slowed_at, error)
        VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5), now() - make_interval(secs => $6), $7)
        -- It is there, and somebody holds it; or another worker was faster.
        ON CONFLICT (destination) DO NOTHING",
        destination,
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

/// Holds the jobs of messages that were not claimed: their rows wait for their destination, as if the relay had not
/// published them. Returns their outbox rows; the others are held by somebody or no longer free to be attempted, and
/// nothing was changed about them.
///
/// # Errors
/// The database cannot be asked.
pub async fn hold_published(pool: &Pool, messages: &[Message]) -> Result<Vec<i64>, sqlx::Error> {
    let rows: Vec<i64> = messages.iter().map(|message| message.outbox_id).collect();
    let job_ids: Vec<Uuid> = messages.iter().map(|message| message.job_id).collect();
    let attempts: Vec<i32> = messages.iter().map(|message| message.attempt).collect();
    let statement = sqlx::query_scalar!(
        "-- hold_published
        WITH free AS MATERIALIZED (
            SELECT outbox.id, sick.destination IS NOT NULL AS is_sick
            FROM unnest($1::bigint[], $2::uuid[], $3::integer[]) AS message (outbox_id, job_id, attempt)
            JOIN webhook_jobs AS job
                ON job.id = ANY($2) AND job.id = message.job_id AND job.status = 'pending' AND job.attempt = message.attempt
            JOIN outbox ON outbox.id = ANY($1) AND outbox.id = message.outbox_id AND outbox.attempt = message.attempt
            LEFT JOIN destinations AS sick ON sick.destination = outbox.destination AND sick.state <> 'closed'
            WHERE coalesce(outbox.waits_for, '') = ''
            FOR UPDATE OF outbox, job SKIP LOCKED
        )
        UPDATE outbox
        SET released = false, published_at = NULL,
            -- If it is well again, nothing is to be waited for.
            waits_for = CASE WHEN is_sick THEN 'destination' END,
            due_at = now() + CASE WHEN is_sick THEN interval '0' ELSE interval '1 second' END
        FROM free WHERE outbox.id = ANY($1) AND outbox.id = free.id
        RETURNING outbox.id",
        &rows,
        &job_ids,
        &attempts,
    );
    on_connection(pool, async |connection| statement.fetch_all(connection).await).await
}

/// Lets no job be claimed for this URL, whatever its query, for so long: its receiver asked for that.
///
/// # Errors
/// The database cannot be asked, or somebody holds the URL's row.
pub async fn pause_url(pool: &Pool, url: &str, pause: Duration) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        "-- pause_url
        INSERT INTO url_pauses AS known (url, until)
        VALUES (outhook.url_without_query($1), now() + make_interval(secs => $2))
        ON CONFLICT (url) DO UPDATE SET until = greatest(known.until, excluded.until)",
        url,
        pause.as_secs_f64()
    );
    on_connection(pool, async |connection| statement.execute(connection).await).await.map(drop)
}

/// When the requests to a destination with a limit may go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slots {
    /// So many.
    pub count: u32,
    /// The first in this time.
    pub first_in: Duration,
    /// The next ones after this time each.
    pub spacing: Duration,
}

/// Reserves up to `wanted` slots of a destination's limit, none of them further ahead than half a second: any number of
/// workers share them. Without a limit, all are there at once; while somebody holds the destination's row, none.
///
/// # Errors
/// The database cannot be asked.
pub async fn reserve_slots(pool: &Pool, destination: &str, wanted: u32) -> Result<Slots, sqlx::Error> {
    let statement = sqlx::query!(
        r#"-- reserve_slots
        WITH known AS MATERIALIZED (
            SELECT greatest(next_slot_at, clock_timestamp()) AS first, $4::float8 / rate_limit AS spacing
            FROM destinations WHERE destination = $1 AND rate_limit IS NOT NULL
            FOR UPDATE SKIP LOCKED
        ), reserved AS MATERIALIZED (
            SELECT first, spacing,
                   least($2::float8, greatest(0::float8, 1 + floor(($3::float8 - extract(epoch FROM first - clock_timestamp())::float8) / spacing)))
                       AS count
            FROM known
        ), moved AS (
            UPDATE destinations SET next_slot_at = first + make_interval(secs => count * spacing)
            FROM reserved WHERE destination = $1
        )
        SELECT count AS "count!", greatest(extract(epoch FROM first - clock_timestamp())::float8, 0) AS "first_in!",
               spacing AS "spacing!"
        FROM reserved
        UNION ALL
        SELECT 0, 0, 0 FROM destinations
        WHERE destination = $1 AND rate_limit IS NOT NULL AND NOT EXISTS (SELECT FROM reserved)"#,
        destination,
        f64::from(wanted),
        SLOT_HORIZON,
        SLOT_MARGIN,
    );
    let row = on_connection(pool, async |connection| statement.fetch_optional(connection).await).await?;
    let Some(row) = row else { return Ok(Slots { count: wanted, first_in: Duration::ZERO, spacing: Duration::ZERO }) };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to `wanted`")]
    let count = row.count as u32;
    Ok(Slots { count, first_in: seconds(row.first_in), spacing: seconds(row.spacing) })
}
