//! Destinations that are sick or limited: a circuit breaker in Postgres, which all relays and workers share.
//!
//! ```text
//!            so many failures in a row                    cool-down over
//!  closed ──────────────────────────────▶ open ──────────────────────────────▶ half_open
//!    │ ▲                                   ▲                                     │   │
//!    │ │ nothing held for a while          └────────── the probe fails ──────────┘   │
//!    ▼ │                                                                             │
//!  metered ◀──────────────────────── the probe succeeds ─────────────────────────────┘
//! ```
//! `closed` becomes `metered` when requests pile up or a receiver asks to slow down.
//!
//! Only `closed` lets rows of the outbox be published as they become due. Otherwise the relay holds them,
//! which costs one update a row, and [`release`] sets them free: one as a probe, or so many a second,
//! oldest first, twice as many each second while all goes well. A destination that is well has no row here.
//!
//! All of this is advice, which decides when a job is attempted, never whether: a row that is held rings by
//! itself after [`LOOK_AGAIN`].

use std::time::Duration;

use sqlx::PgPool;
use tokio_postgres::{Error, GenericClient};
use uuid::Uuid;

use crate::database::on_connection;
use crate::message::Message;

/// When a row that is held or waits for its turn is looked at again, should nobody set it free.
pub const LOOK_AGAIN: Duration = Duration::from_mins(15);

/// Between two releases of a metered destination: short, so that others do not queue behind a crowd.
pub const TICK: Duration = Duration::from_millis(250);

/// For so long a metered destination must have had nothing held before it is closed: longer than a relay's
/// turn, which may be about to hold a row for the state that it found.
const LINGER: Duration = Duration::from_secs(10);

/// A probe without a verdict after so long is taken as lost, and another one is sent.
const PROBE_TIME: Duration = Duration::from_mins(1);

/// Destinations that are looked at in one statement.
const RELEASE_BATCH: i64 = 50;

/// How long a breaker stays open.
#[derive(Clone, Copy, Debug)]
pub struct CoolDown {
    /// The first time; doubled each time it opens without a success in between.
    pub base: Duration,
    /// At the most.
    pub max: Duration,
}

/// Opens the breaker of a destination that failed often in a row.
///
/// # Errors
/// The database cannot be asked.
pub async fn open(pool: &PgPool, destination: &str, error: &str, cool_down: CoolDown) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        "-- open_breaker
        INSERT INTO destinations AS known (destination, state, openings, hold_until, error)
        VALUES ($1, 'open', 1, now() + make_interval(secs => $2), $4)
        ON CONFLICT (destination) DO UPDATE
        SET state = 'open', error = excluded.error, changed_at = now(),
            -- What was long ago does not count.
            openings = CASE WHEN known.changed_at > now() - interval '1 hour' THEN known.openings + 1 ELSE 1 END,
            hold_until = now() + make_interval(secs => CASE
                WHEN known.changed_at > now() - interval '1 hour' THEN least($2::float8 * 2.0 ^ least(known.openings, 30), $3)
                ELSE $2 END)
        -- What was sent before it opened may fail after that, and was counted.
        WHERE known.state IN ('closed', 'metered')",
        destination,
        cool_down.base.as_secs_f64(),
        cool_down.max.as_secs_f64(),
        error,
    );
    on_connection(pool, async |connection| statement.execute(connection).await).await.map(drop)
}

/// Opens the breaker anew after its probe has failed.
///
/// # Errors
/// The database cannot be asked.
pub async fn reopen(pool: &PgPool, destination: &str, error: &str, cool_down: CoolDown) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        "-- reopen_breaker
        UPDATE destinations
        SET state = 'open', openings = openings + 1, error = $4, changed_at = now(),
            hold_until = now() + make_interval(secs => least($2::float8 * 2.0 ^ least(openings, 30), $3))
        WHERE destination = $1 AND state = 'half_open'",
        destination,
        cool_down.base.as_secs_f64(),
        cool_down.max.as_secs_f64(),
        error,
    );
    on_connection(pool, async |connection| statement.execute(connection).await).await.map(drop)
}

/// Starts to release what is held, after a probe has succeeded.
///
/// # Errors
/// The database cannot be asked.
pub async fn recover(pool: &PgPool, destination: &str) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        "-- close_breaker
        UPDATE destinations
        SET state = 'metered', openings = 0, hold_until = now(), changed_at = now(), release_limit = DEFAULT,
            slowed_at = NULL, error = ''
        WHERE destination = $1 AND state IN ('open', 'half_open')",
        destination,
    );
    on_connection(pool, async |connection| statement.execute(connection).await).await.map(drop)
}

/// Slows a destination down that does not keep up: nothing more for `pause`, then `limit` a second, or half
/// as many as before.
///
/// # Errors
/// The database cannot be asked.
pub async fn slow_down(
    pool: &PgPool,
    destination: &str,
    pause: Duration,
    limit: i32,
    error: &str,
) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        "-- slow_down
        INSERT INTO destinations AS known (destination, state, release_limit, slowed_at, hold_until, error)
        VALUES ($1, 'metered', $3, now(), now() + make_interval(secs => $2), $4)
        ON CONFLICT (destination) DO UPDATE
        SET state = CASE known.state WHEN 'closed' THEN 'metered' ELSE known.state END,
            release_limit = CASE
                WHEN known.state = 'closed' THEN excluded.release_limit
                -- Once a second: what many workers say at once is one thing.
                WHEN known.slowed_at > now() - interval '1 second' THEN known.release_limit
                ELSE greatest(known.release_limit / 2, 1) END,
            slowed_at = CASE
                WHEN known.slowed_at > now() - interval '1 second' THEN known.slowed_at ELSE now() END,
            hold_until = greatest(known.hold_until, excluded.hold_until),
            error = excluded.error, changed_at = now()",
        destination,
        pause.as_secs_f64(),
        limit,
        error,
    );
    on_connection(pool, async |connection| statement.execute(connection).await).await.map(drop)
}

/// Holds the jobs of messages that were not claimed: their alarms wait for their destination, as if the
/// relay had not published them. Returns their outbox rows; the others are not free to be attempted, and
/// nothing was changed about them: their messages are to be treated as those that find no claim.
///
/// # Errors
/// The database cannot be asked.
pub async fn hold_published(pool: &PgPool, messages: &[Message]) -> Result<Vec<i64>, sqlx::Error> {
    let alarms: Vec<i64> = messages.iter().map(|message| message.outbox_id).collect();
    let job_ids: Vec<Uuid> = messages.iter().map(|message| message.job_id).collect();
    let attempts: Vec<i32> = messages.iter().map(|message| message.attempt).collect();
    let statement = sqlx::query_scalar!(
        "-- hold_published
        UPDATE outbox AS alarm
        SET released = false, published_at = NULL,
            -- Nobody would set it free if its destination is well again: then it is due soon.
            waits_for = CASE WHEN sick.destination IS NOT NULL THEN 'destination' END,
            due_at = now() + CASE WHEN sick.destination IS NOT NULL THEN make_interval(secs => $4) ELSE interval '1 second' END
        FROM unnest($1::bigint[], $2::uuid[], $3::integer[]) AS message (outbox_id, job_id, attempt)
        JOIN webhook_jobs AS job ON job.id = ANY($2) AND job.id = message.job_id AND job.status = 'pending' AND job.attempt = message.attempt
        JOIN outbox AS current ON current.id = ANY($1) AND current.id = message.outbox_id
        LEFT JOIN destinations AS sick ON sick.destination = current.destination AND sick.state <> 'closed'
        WHERE alarm.id = ANY($1) AND alarm.id = message.outbox_id AND alarm.attempt = message.attempt
          AND alarm.waits_for IS NULL
        RETURNING alarm.id",
        &alarms,
        &job_ids,
        &attempts,
        LOOK_AGAIN.as_secs_f64(),
    );
    on_connection(pool, async |connection| statement.fetch_all(connection).await).await
}

/// Whether any destination is sick or limited. Rarely, so it is asked before anything else.
///
/// # Errors
/// The database cannot be asked.
pub async fn any_sick(client: &impl GenericClient) -> Result<bool, Error> {
    let statement = "-- any_sick
        SELECT EXISTS (SELECT FROM destinations WHERE state <> 'closed' OR rate_limit IS NOT NULL)";
    let rows = client.query_typed(statement, &[]).await?;
    Ok(rows.iter().any(|row| row.get(0)))
}

/// Holds up to `limit` rows that are due for destinations that are sick or limited, those longest due first:
/// [`crate::due::claim_due`] steps over them until then. Returns how many.
///
/// # Errors
/// The database cannot be asked.
pub async fn hold_due(client: &impl GenericClient, limit: i64) -> Result<u64, Error> {
    client
        .execute(
            "-- hold_due
            UPDATE outbox
            SET waits_for = 'destination', published_at = NULL, due_at = now() + make_interval(secs => $2)
            WHERE id IN (
                SELECT id FROM outbox
                WHERE due_at <= now() AND NOT released AND destination IN (
                    SELECT destinations.destination FROM destinations WHERE state <> 'closed' OR rate_limit IS NOT NULL)
                ORDER BY due_at
                LIMIT $1
                FOR UPDATE SKIP LOCKED)",
            &[&limit, &LOOK_AGAIN.as_secs_f64()],
        )
        .await
}

/// Sets free what may go of all destinations whose time has come, and moves their states on. Returns how
/// many rows that were. `most` bounds those of one destination in a second.
///
/// # Errors
/// The database cannot be asked.
pub async fn release(client: &impl GenericClient, most: i32) -> Result<u64, Error> {
    let row = client
        .query_one(
            "-- release_held
            WITH sick AS MATERIALIZED (
                SELECT destinations.destination,
                       CASE WHEN state IN ('open', 'half_open') THEN 1 ELSE allowance END AS allowance,
                       -- Of the length that makes whole rows of what is allowed a second.
                       allowance::float8 / allowed AS tick
                FROM destinations
                CROSS JOIN LATERAL (
                    SELECT CASE WHEN state = 'closed' THEN rate_limit ELSE least(release_limit, rate_limit) END AS allowed
                ) AS a_second
                CROSS JOIN LATERAL (SELECT greatest(1, floor(allowed * $3::float8))::integer AS allowance) AS a_tick
                WHERE hold_until <= now() AND (state <> 'closed' OR rate_limit IS NOT NULL AND EXISTS (
                    SELECT FROM outbox WHERE outbox.destination = destinations.destination AND waits_for = 'destination'))
                ORDER BY hold_until
                LIMIT $1
                FOR UPDATE OF destinations SKIP LOCKED
            ), chosen AS MATERIALIZED (
                SELECT held.id
                FROM sick CROSS JOIN LATERAL (
                    SELECT id FROM outbox
                    WHERE outbox.destination = sick.destination AND waits_for = 'destination'
                    ORDER BY id
                    LIMIT sick.allowance
                    FOR UPDATE SKIP LOCKED
                ) AS held
            ), freed AS (
                UPDATE outbox SET due_at = now(), waits_for = NULL, released = true
                FROM chosen WHERE outbox.id = chosen.id
                RETURNING destination
            ), counted AS (
                SELECT sick.destination, allowance, tick, count(freed.destination) AS freed
                FROM sick LEFT JOIN freed USING (destination)
                GROUP BY sick.destination, allowance, tick
            ), moved AS (
                UPDATE destinations AS known
                SET state = CASE
                        WHEN state IN ('open', 'half_open') AND freed > 0 THEN 'half_open'
                        WHEN state IN ('open', 'half_open') THEN 'metered'
                        WHEN state = 'metered' AND freed = 0 AND changed_at < now() - make_interval(secs => $5::float8) THEN 'closed'
                        ELSE state END,
                    hold_until = now() + make_interval(secs => CASE
                        WHEN state IN ('open', 'half_open') AND freed > 0 THEN $4::float8 ELSE tick END),
                    release_limit = CASE
                        WHEN state = 'metered' AND freed = allowance
                            AND (slowed_at IS NULL OR slowed_at < now() - interval '1 second')
                        -- Twice as many after a second.
                        THEN least(ceil(release_limit * 2.0 ^ tick)::integer, greatest($2, release_limit))
                        ELSE release_limit END,
                    changed_at = CASE WHEN freed > 0 OR state IN ('open', 'half_open') THEN now() ELSE changed_at END
                FROM counted WHERE known.destination = counted.destination
            )
            SELECT count(*) FROM freed",
            &[&RELEASE_BATCH, &most, &TICK.as_secs_f64(), &PROBE_TIME.as_secs_f64(), &LINGER.as_secs_f64()],
        )
        .await?;
    Ok(row.get::<_, i64>(0).cast_unsigned())
}
