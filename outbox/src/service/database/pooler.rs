//! What stands between a service and Postgres: nothing, or a pooler that lends a server's process for one transaction
//! at a time, as `PgBouncer` does with `pool_mode = transaction`.
//!
//! A pooler that lends it for a whole session is as good as none.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};

use super::settings::{Settings, Until};

/// Statements that a connection keeps prepared.
const KEPT_STATEMENTS: usize = 100;

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
pub(super) const FORGET: &str = "DEALLOCATE ALL";
