//! The signing keys of destinations: set by whoever runs the service, read at every claim.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::destination::Destination;
use crate::service::database::{Pool, on_connection};
use crate::signing::key::Scheme;

/// Keys of one destination that sign side by side: receivers bound the signatures that they look at.
pub const MAX_KEYS: i64 = 5;

/// A key to be set.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its id, a UUID version 7.
    pub id: Uuid,
    /// Whose deliveries it signs.
    pub destination: Destination,
    /// How it signs.
    pub scheme: Scheme,
    /// The key, sealed for the destination.
    pub sealed: Vec<u8>,
    /// For how long the destination's earlier keys of this scheme sign beside it.
    pub overlap: Duration,
}

/// A key that is there.
#[derive(Clone, Debug)]
pub struct StoredKey {
    /// Its id.
    pub id: Uuid,
    /// How it signs, for people: what counts is sealed.
    pub scheme: String,
    /// When it was set.
    pub created_at: OffsetDateTime,
    /// Until when it signs; for good when `None`.
    pub expires_at: Option<OffsetDateTime>,
    /// The key, sealed.
    pub sealed: Vec<u8>,
}

/// Sets a key: from the commit on it signs, and the earlier ones of its scheme until the overlap is over. Keys
/// of the destination that have expired go. False, and nothing is written, if [`MAX_KEYS`] would be exceeded.
///
/// # Errors
/// The statement failed.
pub async fn set(pool: &Pool, key: &NewKey) -> Result<bool, sqlx::Error> {
    on_connection(pool, async |connection| {
        let mut transaction = connection.begin().await?;
        // One writer at a time, so that the count holds and no earlier key is overlooked; claims only read.
        sqlx::query("LOCK TABLE destination_keys IN SHARE ROW EXCLUSIVE MODE").execute(&mut *transaction).await?;
        let beside = sqlx::query_scalar!(
            r#"-- count_signing_keys
            SELECT count(*) AS "count!" FROM destination_keys
            WHERE destination = $1 AND (expires_at IS NULL OR expires_at > clock_timestamp())
              AND NOT (scheme = $2 AND $3)"#,
            key.destination.as_str(),
            key.scheme.as_str(),
            key.overlap.is_zero(),
        )
        .fetch_one(&mut *transaction)
        .await?;
        if beside >= MAX_KEYS {
            return Ok(false);
        }
        sqlx::query!(
            "-- set_signing_key
            WITH expired AS (
                DELETE FROM destination_keys WHERE destination = $2 AND expires_at <= clock_timestamp()
            ), ending AS (
                -- What ends sooner already still does: least ignores NULL, which is never.
                UPDATE destination_keys SET expires_at = least(expires_at, clock_timestamp() + make_interval(secs => $5))
                WHERE destination = $2 AND scheme = $3 AND (expires_at IS NULL OR expires_at > clock_timestamp())
            )
            INSERT INTO destination_keys (id, destination, scheme, sealed) VALUES ($1, $2, $3, $4)",
            key.id,
            key.destination.as_str(),
            key.scheme.as_str(),
            key.sealed,
            key.overlap.as_secs_f64(),
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(true)
    })
    .await
}

/// The destination's keys, the newest first.
///
/// # Errors
/// The database cannot be asked.
pub async fn list(pool: &Pool, destination: &Destination) -> Result<Vec<StoredKey>, sqlx::Error> {
    let statement = sqlx::query_as!(
        StoredKey,
        "-- list_signing_keys
        SELECT id, scheme, created_at, expires_at, sealed FROM destination_keys
        WHERE destination = $1 ORDER BY created_at DESC, id DESC LIMIT 100",
        destination.as_str()
    );
    on_connection(pool, async |connection| statement.fetch_all(connection).await).await
}

/// Removes a key: from the commit on it signs nothing that is claimed. The scheme that it had, or `None` if there
/// is no such key.
///
/// # Errors
/// The statement failed; it may be repeated.
pub async fn remove(pool: &Pool, id: Uuid) -> Result<Option<String>, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        "-- remove_signing_key
        DELETE FROM destination_keys WHERE id = $1 RETURNING scheme",
        id
    );
    on_connection(pool, async |connection| statement.fetch_optional(connection).await).await
}

/// The sealed keys that sign now, by destination, the newest first.
pub(crate) async fn signing_now(
    connection: &mut PgConnection,
    destinations: &[Destination],
) -> Result<HashMap<String, Vec<Vec<u8>>>, sqlx::Error> {
    let destinations: Vec<&str> = destinations.iter().map(Destination::as_str).collect();
    let rows = sqlx::query!(
        "-- signing_keys_of_destinations
        SELECT destination, sealed FROM destination_keys
        WHERE destination = ANY($1) AND (expires_at IS NULL OR expires_at > now())
        ORDER BY created_at DESC, id DESC",
        &destinations as _
    )
    .fetch_all(connection)
    .await?;
    let mut keys: HashMap<String, Vec<Vec<u8>>> = HashMap::new();
    for row in rows {
        keys.entry(row.destination).or_default().push(row.sealed);
    }
    Ok(keys)
}
