//! Which installation of Outhook a database is: two of them on one broker may have the same names.

use uuid::Uuid;

use crate::service::database::{Pool, on_connection};

/// The id of this one, made with its schema.
///
/// # Errors
/// The database cannot be asked.
pub async fn installation(pool: &Pool) -> Result<Uuid, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        "-- installation
        SELECT id FROM installation"
    );
    on_connection(pool, async |connection| statement.fetch_one(connection).await).await
}
