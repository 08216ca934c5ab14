//! Connections to Postgres, and the schema version that this build works with.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret, SecretString};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, Postgres};
use sqlx::{ConnectOptions, Connection as _};
use tokio_postgres::{AsyncMessage, Client, Connection, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::backoff::Backoff;

/// The schema version that this build reads and writes: the newest file in `migrations/sql`.
pub const SCHEMA_VERSION: u32 = 7;

/// No statement of a service takes longer; set in Postgres, so that it holds for a stuck client too.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);

/// No statement of a service waits longer for a row that another transaction holds, unless it says so.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that takes longer to open is not waited for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of every service's connections: plans are made once and kept, so they must be right whatever size a table
/// has by then. Every statement of a service names the rows that it wants; so it finds them by an index, in a scan that
/// also cleans up what is dead. What has no index, the few destinations, looks expensive like this, which is no reason
/// to compile the plan. See docs/decisions/0012.
pub(crate) const PLANNER: [(&str, &str); 3] = [("enable_seqscan", "off"), ("enable_bitmapscan", "off"), ("jit", "off")];

/// A setting for statements that join a batch with the rows that it names, by hashing. Postgres expects ten elements of
/// any array, and would compare each with each.
pub const JOIN_BY_HASH: (&str, &str) = ("enable_nestloop", "off");

/// A connection that was idle for longer is tested before it is used.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// Why the database cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// Postgres or its client says no.
    #[error("Postgres: {}", root_cause(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// No connection within its time.
    #[error("Postgres did not answer in time")]
    Timeout,
    /// Nothing was ever migrated here.
    #[error("the database has no Outhook schema: run outhook-migrate")]
    NoSchema,
    /// This build is newer than the database.
    #[error("the database has schema version {0}, this build needs {SCHEMA_VERSION}: run outhook-migrate")]
    OlderSchema(u32),
    /// This build is older than the database.
    #[error("the database has schema version {0}, this build knows only {SCHEMA_VERSION}: run a newer build")]
    NewerSchema(u32),
}

/// What a client's error is about: its own text stops at "db error" and "error connecting to server".
fn root_cause(error: &tokio_postgres::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Where Postgres is.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Postgres")]
pub struct DatabaseConfig {
    /// Address of Postgres, as in `postgres://user:password@host:5432/database`. TLS is used when the server
    /// offers it, and then its certificate must be one that the system trusts; `?sslmode=disable` does without.
    #[arg(long, env, hide_env_values = true, value_parser = database_url)]
    database_url: SecretString,
}

fn database_url(text: &str) -> Result<SecretString, String> {
    let known = tokio_postgres::Config::from_str(text).is_ok() && PgConnectOptions::from_str(text).is_ok();
    if known && text.starts_with("postgres") {
        Ok(SecretString::from(text))
    } else {
        Err("it is not a URL like postgres://user:password@host:5432/database".to_owned())
    }
}

impl DatabaseConfig {
    /// A pool of connections; none is opened before it is needed.
    ///
    /// A caller waits at most `acquire_timeout` for a free one.
    #[must_use]
    pub fn pool(&self, application: &str, connections: u32, acquire_timeout: Duration) -> PgPool {
        self.pool_with(application, connections, acquire_timeout, &[])
    }

    /// The same, with settings of Postgres that take the place of the usual ones.
    #[must_use]
    pub fn pool_with(
        &self,
        application: &str,
        connections: u32,
        acquire_timeout: Duration,
        settings: &[(&str, &str)],
    ) -> PgPool {
        let options = PgConnectOptions::from_str(self.database_url.expose_secret())
            .expect("checked when it was read")
            .application_name(application)
            .options([
                ("statement_timeout", format!("{}ms", STATEMENT_TIMEOUT.as_millis())),
                ("lock_timeout", format!("{}ms", LOCK_TIMEOUT.as_millis())),
            ])
            .options(PLANNER)
            .options(settings.iter().copied())
            .disable_statement_logging();
        PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(acquire_timeout)
            // It was tested when it was given back, a moment ago.
            .test_before_acquire(false)
            .before_acquire(|connection, metadata| {
                Box::pin(async move {
                    if metadata.idle_for > TRUSTED_FOR {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(options)
    }

    /// A single connection.
    ///
    /// # Errors
    /// Postgres cannot be reached in time or refuses.
    pub async fn connect(&self, application: &str) -> Result<Client, DatabaseError> {
        self.connect_listening(application, || {}).await
    }

    /// A single connection that calls `on_notification` at each NOTIFY it hears, and once more when it
    /// ends, so that nobody waits on a dead line.
    ///
    /// # Errors
    /// Postgres cannot be reached in time or refuses.
    pub async fn connect_listening(
        &self,
        application: &str,
        on_notification: impl Fn() + Send + 'static,
    ) -> Result<Client, DatabaseError> {
        let mut config = tokio_postgres::Config::from_str(self.database_url.expose_secret())?;
        config
            .application_name(application)
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(Duration::from_secs(10))
            .tcp_user_timeout(Duration::from_secs(10));
        let connecting = config.connect(MakeRustlsConnect::new(tls_config()));
        let (client, connection) =
            tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| DatabaseError::Timeout)??;
        tokio::spawn(drive(connection, on_notification));
        Ok(client)
    }

    /// Waits until Postgres can be reached, then checks that its schema is the one this build knows.
    /// Returns early, without a word on the schema, if the process is asked to stop.
    ///
    /// # Errors
    /// The schema is older or newer: the sentence says which, and what to do.
    pub async fn require_schema(&self, application: &str, stop: &CancellationToken) -> Result<(), DatabaseError> {
        let mut backoff = Backoff::reconnect();
        loop {
            match stop.run_until_cancelled(self.check_schema(application)).await.unwrap_or(Ok(())) {
                Err(error @ (DatabaseError::Postgres(_) | DatabaseError::Timeout)) => {
                    warn!(%error, "waiting for Postgres");
                }
                checked => return checked,
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(backoff.next_wait()) => {}
            }
        }
    }

    /// Checks, without waiting, that the schema is the one this build knows.
    ///
    /// # Errors
    /// Postgres cannot be asked, or the schema is older or newer.
    pub async fn check_schema(&self, application: &str) -> Result<(), DatabaseError> {
        check_version(schema_version(&self.connect(application).await?).await?)
    }
}

/// Runs a statement on a connection of the pool. One that does not answer in time, or whose caller goes
/// away, is closed instead of given back: a stalled connection must not wait in the pool for the next one.
///
/// # Errors
/// The statement failed, or there was no connection or no answer in time ([`Failure::Unavailable`]).
pub async fn on_connection<T>(
    pool: &PgPool,
    statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let mut lent = Lent(Some(pool.acquire().await?));
    let connection = lent.0.as_mut().expect("it was put there in the line above");
    // Postgres ends a statement by itself; a second more means that it cannot say so.
    let answer = tokio::time::timeout(STATEMENT_TIMEOUT + Duration::from_secs(1), statement(connection)).await;
    let result = answer.map_err(|_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))?;
    if let Some(mut connection) = lent.0.take() {
        // The pool tests what it gets back, and would wait for the answer for ever.
        tokio::spawn(tokio::time::timeout(Duration::from_secs(1), async move { connection.return_to_pool().await }));
    }
    result
}

/// A connection that is closed unless it is taken out.
struct Lent(Option<PoolConnection<Postgres>>);

impl Drop for Lent {
    fn drop(&mut self) {
        drop(self.0.take().map(PoolConnection::detach));
    }
}

/// The version of the newest migration that ran on this database, if any did.
///
/// # Errors
/// The database cannot be asked.
pub async fn schema_version(client: &Client) -> Result<Option<u32>, DatabaseError> {
    tokio::time::timeout(CONNECT_TIMEOUT, read_schema_version(client)).await.map_err(|_| DatabaseError::Timeout)?
}

async fn read_schema_version(client: &Client) -> Result<Option<u32>, DatabaseError> {
    let row = client.query_one("SELECT to_regclass('public.refinery_schema_history') IS NOT NULL", &[]).await?;
    if !row.get::<_, bool>(0) {
        return Ok(None);
    }
    let row = client.query_one("SELECT max(version) FROM public.refinery_schema_history", &[]).await?;
    Ok(row.get::<_, Option<i32>>(0).map(i32::cast_unsigned))
}

fn check_version(found: Option<u32>) -> Result<(), DatabaseError> {
    match found {
        Some(SCHEMA_VERSION) => Ok(()),
        None => Err(DatabaseError::NoSchema),
        Some(found) if found < SCHEMA_VERSION => Err(DatabaseError::OlderSchema(found)),
        Some(found) => Err(DatabaseError::NewerSchema(found)),
    }
}

/// TLS with the certificates that the system trusts; used only when the server offers it or the URL asks.
fn tls_config() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default TLS versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Moves the connection's bytes until it ends.
async fn drive<Tls>(mut connection: Connection<Socket, Tls>, on_notification: impl Fn())
where
    Tls: tokio_postgres::tls::TlsStream + Unpin,
{
    loop {
        match std::future::poll_fn(|context| connection.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notification(_))) => on_notification(),
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                debug!(%error, "a connection to Postgres ended");
                break;
            }
            None => break,
        }
    }
    on_notification();
}

/// What a failed statement means for whoever sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Another transaction was in the way (SQLSTATE class 40): nothing was written, trying again may work.
    Conflict,
    /// Another transaction holds a row that is needed (55P03): nothing was written.
    Locked,
    /// The statement itself is refused (classes 22 and 23): nothing was written, trying again is no use.
    Rejected,
    /// Anything else: Postgres is away, full, or did not answer. Whether it committed is not known.
    Unavailable,
}

impl Failure {
    /// Classifies by SQLSTATE (Postgres manual, appendix A).
    #[must_use]
    pub fn of(error: &sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        match code.as_deref() {
            Some("55P03") => Self::Locked,
            Some(code) if code.starts_with("40") => Self::Conflict,
            Some(code) if code.starts_with("22") || code.starts_with("23") => Self::Rejected,
            _ => Self::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_schema_is_refused_in_one_sentence() {
        assert!(check_version(Some(SCHEMA_VERSION)).is_ok());
        for (found, words) in [
            (None, "no Outhook schema: run outhook-migrate"),
            (Some(SCHEMA_VERSION - 1), "needs 7: run outhook-migrate"),
            (Some(SCHEMA_VERSION + 1), "knows only 7: run a newer build"),
        ] {
            let sentence = check_version(found).expect_err("it is another version").to_string();
            assert!(sentence.ends_with(words), "{sentence}");
        }
    }

    #[test]
    fn only_postgres_urls_are_taken() {
        assert!(database_url("postgres://u:p@localhost:5432/d").is_ok());
        for wrong in ["", "localhost", "mysql://localhost/d", "postgres://u:p@localhost:port/d"] {
            assert!(database_url(wrong).is_err(), "{wrong}");
        }
    }
}
