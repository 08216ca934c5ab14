//! Whether the database has the schema that this build works with.

use sqlx::Row;
use sqlx::postgres::PgConnection;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::detection::find_pooler;
use super::pooler::Pooler;
use super::{CONNECT_TIMEOUT, DatabaseConfig, DatabaseError};
use crate::service::backoff::Backoff;

/// The schema version that this build reads and writes: of tables, functions and views together, so that a new file in
/// `migrations/sql` raises it, and so does any change in `migrations/sql_api`.
pub const SCHEMA_VERSION: u32 = 1;

const HAS_VERSION: &str = "SELECT to_regclass('public.schema_version') IS NOT NULL";
const VERSION: &str = "SELECT max(version) FROM public.schema_version";

impl DatabaseConfig {
    /// Waits until Postgres can be reached as a pool reaches it, then checks that its schema is the one this build
    /// knows. Returns early, without a word on the schema, if the process is asked to stop.
    ///
    /// # Errors
    /// The schema is older or newer: the sentence says which, and what to do. Or a file of certificates cannot be used.
    pub async fn require_schema(&self, application: &str, stop: &CancellationToken) -> Result<(), DatabaseError> {
        wait_for(stop, async || self.check_schema(application).await).await
    }

    /// The same for a program that needs sessions of its own.
    ///
    /// # Errors
    /// As [`Self::require_schema`], or a pooler lends sessions for a transaction only.
    pub async fn require_session(&self, application: &str, stop: &CancellationToken) -> Result<(), DatabaseError> {
        wait_for(stop, async || {
            self.check_session(application).await?;
            check_version(schema_version(&self.connect(application).await?).await?)
        })
        .await
    }

    /// A single connection as those of a pool, on a session of its own, to a schema of this build.
    ///
    /// # Errors
    /// As [`Self::require_session`], without waiting.
    pub async fn connect_alone(&self, application: &str) -> Result<PgConnection, DatabaseError> {
        self.check_session(application).await?;
        let mut connection = self.direct().opener(application, &[], Pooler::None).open().await?;
        check_version(version_on(&mut connection).await?)?;
        Ok(connection)
    }

    /// Checks, without waiting, that the schema is the one this build knows, and finds out what pools have to know of
    /// the connections.
    async fn check_schema(&self, application: &str) -> Result<(), DatabaseError> {
        self.trusting_url().trust.needs_no_more()?;
        let opener = self.opener(application, &[], Pooler::PassingNames);
        // Used as one of these, any connection works.
        let pooler = find_pooler(&opener).await?.unwrap_or(Pooler::PassingNames);
        check_version(timeout(CONNECT_TIMEOUT, version_on(&mut opener.open().await?)).await??)?;
        if self.set_pooler(pooler) {
            info!("Postgres is behind a pooler that lends a session for a transaction: each statement becomes one");
        }
        Ok(())
    }

    /// Checks, without waiting, that a session is lent for as long as it is used.
    ///
    /// # Errors
    /// It is not, or Postgres cannot be asked.
    pub async fn check_session(&self, application: &str) -> Result<(), DatabaseError> {
        match find_pooler(&self.direct().opener(application, &[], Pooler::PassingNames)).await? {
            Some(Pooler::None) => Ok(()),
            Some(Pooler::Renaming | Pooler::PassingNames) => Err(DatabaseError::NoSession),
            None => Err(DatabaseError::Timeout),
        }
    }
}

async fn wait_for(
    stop: &CancellationToken,
    check: impl AsyncFn() -> Result<(), DatabaseError>,
) -> Result<(), DatabaseError> {
    let mut backoff = Backoff::reconnect();
    loop {
        match stop.run_until_cancelled(check()).await.unwrap_or(Ok(())) {
            Err(error) if error.may_pass() => warn!(%error, "waiting for Postgres"),
            checked => return checked,
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
    }
}

async fn version_on(connection: &mut PgConnection) -> Result<Option<u32>, sqlx::Error> {
    // Not prepared: a pooler may have another statement under its name.
    if sqlx::raw_sql(HAS_VERSION).fetch_one(&mut *connection).await?.try_get(0)? {
        let version: Option<i32> = sqlx::raw_sql(VERSION).fetch_one(connection).await?.try_get(0)?;
        return Ok(version.map(i32::cast_unsigned));
    }
    Ok(None)
}

/// The version that this database was brought to, if it ever was to any.
///
/// # Errors
/// The database cannot be asked.
pub async fn schema_version(client: &Client) -> Result<Option<u32>, DatabaseError> {
    timeout(CONNECT_TIMEOUT, read_schema_version(client)).await.map_err(|_| DatabaseError::Timeout)?
}

async fn read_schema_version(client: &Client) -> Result<Option<u32>, DatabaseError> {
    if !client.query_one(HAS_VERSION, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let version = client.query_one(VERSION, &[]).await?.get::<_, Option<i32>>(0);
    Ok(version.map(i32::cast_unsigned))
}

fn check_version(found: Option<u32>) -> Result<(), DatabaseError> {
    match found {
        Some(SCHEMA_VERSION) => Ok(()),
        None => Err(DatabaseError::NoSchema),
        Some(found) if found < SCHEMA_VERSION => Err(DatabaseError::OlderSchema(found)),
        Some(found) => Err(DatabaseError::NewerSchema(found)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_schema_is_refused_in_one_sentence() {
        assert!(check_version(Some(SCHEMA_VERSION)).is_ok());
        for (found, words) in [
            (None, "no Outhook schema: run outhook migrate"),
            (Some(SCHEMA_VERSION - 1), "needs 1: run outhook migrate"),
            (Some(SCHEMA_VERSION + 1), "knows only 1: run a newer build"),
        ] {
            let sentence = check_version(found).expect_err("it is another version").to_string();
            assert!(sentence.ends_with(words), "{sentence}");
        }
    }
}
