//! The relay's side of destinations: holds what is due for the sick ones and sets it free again.

use std::collections::HashMap;
use std::time::SystemTime;

use tokio_postgres::{Client, Error, GenericClient, Row};

use super::breaker::{Breaker, Change, Freed, Plan, State};
use super::report::seconds;
use crate::due::Statements;

/// Destinations that are looked at in one transaction.
const BATCH: u32 = 500;

/// Rows that are set free in one transaction, of all its destinations together: some 8 us each.
const FREED: usize = 2_000;

/// Rows that wait although nothing is to be waited for, set free in one statement.
const STRAYS: i64 = 2_000;

/// What there is to tend, asked before anything else: most often nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "one answer for each question, all asked at once")]
pub struct Work {
    /// Some destination is not closed.
    pub sick: bool,
    /// Some row waits for its destination.
    pub held: bool,
    /// Some row waits for somebody's lock to end.
    pub checks: bool,
    /// Some pause is over, or some destination may be forgotten.
    pub leftovers: bool,
}

pub(crate) const WHAT_TO_TEND: &str = "-- what_to_tend
    SELECT EXISTS (SELECT FROM destinations WHERE state <> 'closed') AS sick,
           EXISTS (SELECT FROM outbox WHERE waits_for = 'destination') AS held,
           EXISTS (SELECT FROM outbox_checks WHERE id >= $1) AS checks,
           EXISTS (SELECT FROM url_pauses WHERE until < now())
           OR EXISTS (SELECT FROM destinations WHERE state = 'closed' AND rate_limit IS NULL
                      AND changed_at < now() - interval '1 hour') AS leftovers";

/// Asks what there is to tend; lines of `outbox_checks` count from `from_id` on.
///
/// # Errors
/// The database cannot be asked.
pub async fn work(client: &impl GenericClient, statements: &Statements, from_id: i64) -> Result<Work, Error> {
    let row = client.query_one(&statements.what_to_tend, &[&from_id]).await?;
    Ok(Work {
        sick: row.get("sick"),
        held: row.get("held"),
        checks: row.get("checks"),
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

/// A sick destination whose time to be looked at has come.
struct Sick {
    destination: String,
    breaker: Breaker,
    plan: Plan,
}

impl Sick {
    fn from_row(row: &Row) -> Self {
        let breaker = Breaker {
            state: State::from_text(row.get("state")).expect("destinations_state_known"),
            openings: row.get("openings"),
            release_limit: row.get("release_limit"),
            changed_ago: seconds(row.get("changed_ago")),
            slowed_ago: row.get::<_, Option<f64>>("slowed_ago").map(seconds),
        };
        Self { destination: row.get("destination"), plan: breaker.plan(row.get("rate_limit")), breaker }
    }
}

/// What a look came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tended {
    /// Rows set free.
    pub freed: u64,
    /// Whether there may be more destinations to look at now.
    pub more: bool,
}

/// Looks at the sick destinations whose time has come: sets free what their breakers say, and moves these on. `most`
/// bounds what is set free of one destination in a second. What somebody holds, destination or row, is stepped over.
///
/// # Errors
/// The database cannot be asked.
pub async fn release(client: &mut Client, most: i32) -> Result<Tended, Error> {
    let transaction = client.transaction().await?;
    let rows = transaction
        .query(
            "-- look_at_sick
            SELECT destination, state, openings, release_limit, rate_limit,
                   extract(epoch FROM now() - changed_at)::float8 AS changed_ago,
                   extract(epoch FROM now() - slowed_at)::float8 AS slowed_ago
            FROM destinations WHERE state <> 'closed' AND hold_until <= now()
            ORDER BY hold_until
            LIMIT $1
            FOR UPDATE SKIP LOCKED",
            &[&i64::from(BATCH)],
        )
        .await?;
    if rows.is_empty() {
        return Ok(Tended::default());
    }
    let mut sick: Vec<Sick> = rows.iter().map(Sick::from_row).collect();
    let most_of_one = i32::try_from(FREED / sick.len()).unwrap_or(i32::MAX);
    for it in &mut sick {
        it.plan = it.plan.at_most(most_of_one);
    }
    let freed = set_free(&transaction, &sick).await?;
    let changes: Vec<Change> =
        sick.iter().zip(&freed).map(|(sick, freed)| sick.breaker.looked(sick.plan, *freed, most)).collect();
    store(&transaction, &sick, &changes).await?;
    transaction.commit().await?;
    let total: i32 = freed.iter().map(|freed| freed.rows).sum();
    Ok(Tended { freed: total.unsigned_abs().into(), more: rows.len() == BATCH as usize })
}

/// Carries out the plans. The answers are in the order of the destinations.
async fn set_free(transaction: &impl GenericClient, sick: &[Sick]) -> Result<Vec<Freed>, Error> {
    let destinations: Vec<&str> = sick.iter().map(|it| it.destination.as_str()).collect();
    let wanted: Vec<i32> = sick.iter().map(|it| it.plan.rows).collect();
    let newest: Vec<bool> = sick.iter().map(|it| it.plan.newest).collect();
    let rows = transaction
        .query(
            "-- release_held
            WITH wanted AS MATERIALIZED (
                SELECT * FROM unnest($1::text[], $2::integer[], $3::boolean[]) WITH ORDINALITY
                    AS wanted (destination, rows, newest, place)
            ), oldest AS MATERIALIZED (
                SELECT held.id
                FROM wanted CROSS JOIN LATERAL (
                    SELECT id FROM outbox
                    WHERE outbox.destination = wanted.destination AND waits_for = 'destination'
                    ORDER BY attempt, id
                    LIMIT wanted.rows
                    FOR UPDATE SKIP LOCKED
                ) AS held
                WHERE NOT wanted.newest
            ), newest AS MATERIALIZED (
                SELECT held.id
                FROM wanted CROSS JOIN LATERAL (
                    SELECT id FROM outbox
                    WHERE outbox.destination = wanted.destination AND waits_for = 'destination' AND attempt = (
                        SELECT attempt FROM outbox
                        WHERE outbox.destination = wanted.destination AND waits_for = 'destination'
                        ORDER BY attempt LIMIT 1)
                    ORDER BY id DESC
                    LIMIT wanted.rows
                    FOR UPDATE SKIP LOCKED
                ) AS held
                WHERE wanted.newest
            ), freed AS (
                UPDATE outbox SET due_at = now(), waits_for = NULL, released = true
                WHERE id = ANY (ARRAY(SELECT id FROM oldest UNION ALL SELECT id FROM newest))
                RETURNING destination
            ), counted AS (
                SELECT destination, count(*)::integer AS rows FROM freed GROUP BY destination
            )
            SELECT coalesce(counted.rows, 0) AS rows,
                   -- Read as it was before: so there must be one more than were set free.
                   EXISTS (SELECT FROM outbox
                           WHERE outbox.destination = wanted.destination AND waits_for = 'destination'
                           OFFSET coalesce(counted.rows, 0)) AS are_more_held
            FROM wanted LEFT JOIN counted USING (destination)
            ORDER BY place",
            &[&destinations, &wanted, &newest],
        )
        .await?;
    Ok(rows.iter().map(|row| Freed { rows: row.get("rows"), are_more_held: row.get("are_more_held") }).collect())
}

async fn store(transaction: &impl GenericClient, sick: &[Sick], changes: &[Change]) -> Result<(), Error> {
    let destinations: Vec<&str> = sick.iter().map(|it| it.destination.as_str()).collect();
    let states: Vec<&str> = changes.iter().map(|it| it.breaker.state.as_str()).collect();
    let openings: Vec<i32> = changes.iter().map(|it| it.breaker.openings).collect();
    let limits: Vec<i32> = changes.iter().map(|it| it.breaker.release_limit).collect();
    let look_in: Vec<f64> = changes.iter().map(|it| it.look_in.as_secs_f64()).collect();
    let slowed_ago: Vec<Option<f64>> =
        changes.iter().map(|it| it.breaker.slowed_ago.map(|ago| ago.as_secs_f64())).collect();
    let stored = transaction
        .execute(
            "-- store_sick
            UPDATE destinations AS known
            SET state = change.state, openings = change.openings, release_limit = change.release_limit,
                hold_until = now() + make_interval(secs => change.look_in),
                slowed_at = now() - make_interval(secs => change.slowed_ago),
                changed_at = CASE WHEN known.state = change.state THEN changed_at ELSE now() END
            FROM unnest($1::text[], $2::text[], $3::integer[], $4::integer[], $5::float8[], $6::float8[])
                AS change (destination, state, openings, release_limit, look_in, slowed_ago)
            WHERE known.destination = change.destination",
            &[&destinations, &states, &openings, &limits, &look_in, &slowed_ago],
        )
        .await?;
    debug_assert_eq!(stored, sick.len() as u64, "the rows are locked since look_at_sick");
    Ok(())
}

/// Holds up to `limit` rows that are due, since `since` if it says so, for destinations that are sick, those longest due
/// first: [`crate::due::claim_due`] steps over them until then. Returns how many, and the moment to go on from.
///
/// Only rows that are not published: a job may be under way for one that is due again, and that is put right first.
///
/// # Errors
/// The database cannot be asked.
pub async fn hold_due(
    client: &impl GenericClient,
    limit: i64,
    since: Option<SystemTime>,
) -> Result<(u64, Option<SystemTime>), Error> {
    let row = client
        .query_one(
            "-- hold_due
            WITH chosen AS MATERIALIZED (
                SELECT id, due_at FROM outbox
                WHERE waits_for IS NULL AND due_at <= now() AND due_at >= coalesce($2::timestamptz, '-infinity')
                  AND NOT released AND published_at IS NULL AND (ordering_key IS NULL OR turn)
                  AND (SELECT state FROM destinations
                       WHERE destinations.destination = outbox.destination AND state <> 'closed') IS NOT NULL
                ORDER BY due_at, id
                LIMIT $1
                FOR UPDATE SKIP LOCKED
            ), held AS (
                UPDATE outbox SET waits_for = 'destination', due_at = now() WHERE id = ANY (ARRAY(SELECT id FROM chosen))
            )
            -- Where to go on: after the last one, or, when that were all, from now on.
            SELECT count(*) AS rows, CASE WHEN count(*) < $1 THEN now() ELSE max(due_at) END AS last FROM chosen",
            &[&limit, &since],
        )
        .await?;
    Ok((row.get::<_, i64>("rows").cast_unsigned(), row.get("last")))
}

/// Sets free what is held for destinations that are well, whoever made them so: a limit was lifted, a row was held just
/// when its destination was closed, somebody repaired something by hand. Goes through the destinations that anything is
/// held for, from one name on, some at a time. Returns the name to go on from, empty for the beginning, and how many
/// rows were set free.
///
/// # Errors
/// The database cannot be asked.
pub async fn free_strays(client: &impl GenericClient, from: &str) -> Result<(String, u64), Error> {
    let row = client
        .query_one(
            "-- free_strays
            WITH RECURSIVE held (destination, place) AS (
                (SELECT destination, 1 FROM outbox
                 WHERE waits_for = 'destination' AND destination > $1 ORDER BY destination LIMIT 1)
                UNION ALL
                SELECT (SELECT outbox.destination FROM outbox
                        WHERE waits_for = 'destination' AND outbox.destination > held.destination
                        ORDER BY outbox.destination LIMIT 1), place + 1
                FROM held WHERE held.destination IS NOT NULL AND place < $2
            ), stray AS MATERIALIZED (
                SELECT free.id
                FROM held CROSS JOIN LATERAL (
                    SELECT id FROM outbox
                    WHERE outbox.destination = held.destination AND waits_for = 'destination'
                    ORDER BY attempt, id
                    LIMIT $3
                    FOR UPDATE SKIP LOCKED
                ) AS free
                WHERE NOT EXISTS (SELECT FROM destinations
                                  WHERE destinations.destination = held.destination AND state <> 'closed')
                LIMIT $3
            ), freed AS (
                UPDATE outbox SET due_at = now(), waits_for = NULL, released = true
                WHERE id = ANY (ARRAY(SELECT id FROM stray))
                RETURNING id
            )
            SELECT coalesce((SELECT destination FROM held WHERE place = $2), '') AS next, (SELECT count(*) FROM freed) AS freed",
            &[&from, &BATCH.cast_signed(), &STRAYS],
        )
        .await?;
    Ok((row.get("next"), row.get::<_, i64>("freed").cast_unsigned()))
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
