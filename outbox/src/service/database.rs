//! Connections to Postgres, and the schema version that this build works with.

mod client;
mod detection;
mod failure;
mod hosts;
mod opener;
mod overdue;
mod pool;
mod pooler;
mod schema;
mod settings;
mod tls;
mod url;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::Args;
use tokio_postgres::error::SqlState;

pub(crate) use self::failure::check_rows;
pub use self::failure::{Failure, is_of_one_row};
pub use self::pool::{Pool, on_connection, takes_no_writes};
pub use self::schema::{SCHEMA_VERSION, schema_version};
pub use self::settings::{JOIN_BY_HASH, STATEMENT_TIMEOUT};

use self::pooler::Pooler;
use self::tls::Roots;
use self::url::DatabaseUrl;

/// A connection that takes longer to open is not waited for, unless the URL says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a server is passed over that answers.
const NO_WRITES: &str = "it takes no writes: it is a standby, or its transactions are read-only";

/// Why the database cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// Postgres or its client says no.
    #[error("Postgres: {}", root_cause(.0))]
    Postgres(tokio_postgres::Error),
    /// The same, by the pools' client.
    #[error("Postgres: {}", root_cause(.0))]
    Pool(sqlx::Error),
    /// No connection within its time.
    #[error("Postgres did not answer in time")]
    Timeout,
    /// It can be read only.
    #[error("Postgres: {NO_WRITES}")]
    NoWrites,
    /// A file of certificates cannot be used.
    #[error("cannot use the certificates of {file}: {error}", file = .file.display())]
    Certificate {
        /// Its path.
        file: PathBuf,
        /// Why not.
        error: String,
    },
    /// Nobody is named to vouch for the server.
    #[error("sslmode=verify-ca needs sslrootcert in the URL, or DATABASE_CA_FILE")]
    NoAuthority,
    /// A pooler stands in the way.
    #[error(
        "DATABASE_URL leads to a pooler that lends a session for one transaction only: set DATABASE_DIRECT_URL to the \
         server's own address, or to a pool with pool_mode = session"
    )]
    NoSession,
    /// A session that listens and is told nothing.
    #[error(
        "a notification to ourselves was not heard: if a pooler stands before Postgres, see that it lends whole sessions, or set \
         DATABASE_DIRECT_URL to the server's own address"
    )]
    Deaf,
    /// Nothing was ever migrated here.
    #[error("the database has no Outhook schema: run outhook migrate")]
    NoSchema,
    /// This build is newer than the database.
    #[error("the database has schema version {0}, this build needs {SCHEMA_VERSION}: run outhook migrate")]
    OlderSchema(u32),
    /// This build is older than the database.
    #[error("the database has schema version {0}, this build knows only {SCHEMA_VERSION}: run a newer build")]
    NewerSchema(u32),
}

// Without a source, whose text is said already.
impl From<tokio_postgres::Error> for DatabaseError {
    fn from(error: tokio_postgres::Error) -> Self {
        // What this driver prepares lives as long as its session: another one was lent in its place.
        if error.code() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME) {
            return Self::NoSession;
        }
        Self::Postgres(error)
    }
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        Self::Pool(error)
    }
}

impl From<tokio::time::error::Elapsed> for DatabaseError {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::Timeout
    }
}

impl DatabaseError {
    /// Whether it may pass by itself.
    const fn may_pass(&self) -> bool {
        matches!(self, Self::Postgres(_) | Self::Pool(_) | Self::Timeout | Self::NoWrites)
    }
}

/// What a client's error is about: its own text stops at "db error" and "error connecting to server".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Where Postgres is.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Postgres")]
pub struct DatabaseConfig {
    /// Address of Postgres, as in `postgres://user:password@host:5432/database`. Several hosts, separated by commas,
    /// are tried in turn for one that takes writes. TLS is used when the server offers it, and then its certificate
    /// must be one that is trusted; `?sslmode=require` insists on TLS, `?sslmode=disable` does without.
    #[arg(long, env, hide_env_values = true)]
    database_url: DatabaseUrl,
    /// The same for what needs a session of its own (relay, migrate, check), where `DATABASE_URL` leads to a pooler that
    /// lends one for a transaction only.
    #[arg(long, env, hide_env_values = true)]
    database_direct_url: Option<DatabaseUrl>,
    /// File of certificates (PEM) that Postgres is trusted by, instead of those of the system; as `sslrootcert` in the
    /// URL.
    #[arg(long, env, value_parser = tls::certificate_file)]
    database_ca_file: Option<PathBuf>,
    /// Found out when the schema was checked.
    #[arg(skip)]
    pooler: Arc<OnceLock<Pooler>>,
}

impl DatabaseConfig {
    /// The URL, with the authorities that it leaves to `DATABASE_CA_FILE`.
    fn trusting_url(&self) -> DatabaseUrl {
        let mut url = self.database_url.clone();
        url.trust.roots = url.trust.roots.or_else(|| self.database_ca_file.clone().map(Roots::File));
        url
    }

    /// The way to a session of one's own.
    fn direct(&self) -> Self {
        let database_url = self.database_direct_url.as_ref().unwrap_or(&self.database_url).clone();
        Self { database_url, ..self.clone() }
    }

    fn pooler(&self) -> Pooler {
        self.pooler.get().copied().unwrap_or_default()
    }

    /// Whether there is one.
    fn set_pooler(&self, pooler: Pooler) -> bool {
        *self.pooler.get_or_init(|| pooler) != Pooler::None
    }
}
