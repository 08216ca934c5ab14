//! The slots of destinations with a limit.

use std::time::Duration;

use super::Destination;
use super::store::seconds;
use crate::service::database::{Pool, on_connection};

/// Slots of a limit are reserved no further ahead than this, in seconds.
const SLOT_HORIZON: f64 = 0.5;

/// Between two slots there is this much more time than the limit asks for, so that what is late by some milliseconds
/// does not meet the next ones: no window of a second sees more than the limit.
const SLOT_MARGIN: f64 = 1.05;

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
pub async fn reserve_slots(pool: &Pool, destination: &Destination, wanted: u32) -> Result<Slots, sqlx::Error> {
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
        destination.as_str(),
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
