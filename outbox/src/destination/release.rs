//! Sets free what is held for sick destinations, as their breakers say.

use tokio_postgres::{Client, Error, GenericClient, Row};

use super::Destination;
use super::breaker::{Breaker, Change, Freed, Plan, State};
use super::store::seconds;
use crate::service::database::check_rows;

/// Destinations that are looked at in one transaction.
const BATCH: u32 = 500;

/// Rows that are set free in one transaction, of all its destinations together: some 8 us each.
const FREED: usize = 2_000;

/// A sick destination whose time to be looked at has come.
struct Sick {
    destination: Destination,
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
        let destination: String = row.get("destination");
        Self { destination: destination.into(), plan: breaker.plan(row.get("rate_limit")), breaker }
    }
}

/// What a look came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
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
pub async fn release(client: &mut Client, most: i32) -> Result<Released, Error> {
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
        return Ok(Released::default());
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
    Ok(Released { freed: total.unsigned_abs().into(), more: rows.len() == BATCH as usize })
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
    // They are locked since look_at_sick.
    check_rows("store_sick", sick.len(), stored);
    Ok(())
}
