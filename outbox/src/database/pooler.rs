//! What stands between a service and Postgres: nothing, or a pooler that lends a server's process for one transaction
//! at a time, as `PgBouncer` does with `pool_mode = transaction`.
//!
//! A pooler that lends it for a whole session is as good as none.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Row};
use tokio::time::timeout;

use super::opener::Opener;
use super::settings::{Settings, Until};

/// Statements that a connection keeps prepared.
const KEPT_STATEMENTS: usize = 100;

/// A second connection that takes longer to open waits for the first one's process, or for another one to get free.
const SECOND_TIMEOUT: Duration = Duration::from_secs(1);

/// How often both connections are asked which process serves them: others may borrow these meanwhile.
const ROUNDS: usize = 10;

/// How a connection to Postgres must be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pooler {
    /// It has a process of its own.
    #[default]
    None,
    /// It has one for each transaction. What was prepared on another one is prepared there as well, under a name that
    /// nobody else has.
    Renaming,
    /// It has one for each transaction, where somebody else's statement may have the name of ours.
    PassingNames,
}

impl Pooler {
    /// How many statements may be kept for the next time.
    pub(super) fn kept_statements(self) -> usize {
        if self == Self::PassingNames { 0 } else { KEPT_STATEMENTS }
    }

    /// Finds out what the opener's connections lead to. `None` if that cannot be told: there is one connection to be
    /// had, and no second one.
    pub(super) async fn find(opener: &Opener) -> Result<Option<Self>, sqlx::Error> {
        let mut one = opener.open().await?;
        let Ok(other) = timeout(SECOND_TIMEOUT, opener.open()).await else { return Ok(None) };
        let mut other = other?;
        let process = process_of(&mut one).await?;
        for _ in 0..ROUNDS {
            if process_of(&mut other).await? == process || process_of(&mut one).await? != process {
                return names(&mut one).await.map(Some);
            }
        }
        Ok(Some(Self::None))
    }

    /// Runs what needs a connection. Nothing that it sets or prepares is left to whoever gets the process next.
    pub(super) async fn run<T>(
        self,
        connection: &mut PgConnection,
        settings: &Settings,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        if self == Self::None {
            return statement(connection).await;
        }
        let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        let mut first = settings.statement(Until::TransactionEnds);
        if self == Self::PassingNames {
            first = format!("{FORGET}; {first}");
        }
        sqlx::raw_sql(AssertSqlSafe(first)).execute(&mut *transaction).await?;
        let result = statement(&mut transaction).await?;
        if self == Self::PassingNames {
            sqlx::raw_sql(FORGET).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(result)
    }
}

/// Before our own statements, too: of a transaction that failed, the names are still there.
const FORGET: &str = "DEALLOCATE ALL";

/// The server's process that serves a connection now. Not prepared: under its name there might be something else.
async fn process_of(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection).await?.try_get(0)
}

/// Under which name the server knows a statement that is being prepared.
async fn names(connection: &mut PgConnection) -> Result<Pooler, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let asked = sqlx::query_scalar("SELECT name FROM pg_prepared_statements WHERE statement LIKE '%/* of outhook */%'");
    let names: Result<Vec<String>, _> = asked.fetch_all(&mut *transaction).await;
    match names {
        Ok(names) if !names.is_empty() && !names.iter().any(|name| name.starts_with(SQLX_NAME)) => {
            transaction.commit().await?;
            return Ok(Pooler::Renaming);
        }
        // Its own, or somebody else's who was here before.
        Ok(_) => {
            sqlx::raw_sql(FORGET).execute(&mut *transaction).await?;
            transaction.commit().await?;
        }
        Err(sqlx::Error::Database(_)) => transaction.rollback().await?,
        Err(error) => return Err(error),
    }
    Ok(Pooler::PassingNames)
}

/// What the names of sqlx's statements begin with.
const SQLX_NAME: &str = "sqlx_s_";
