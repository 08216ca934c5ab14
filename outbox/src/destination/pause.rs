//! Pauses that receivers ask for.

use std::time::Duration;

use crate::service::database::{Pool, on_connection};

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
