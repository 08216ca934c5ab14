//! Finds out what stands between a service and Postgres.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};
use tokio::time::timeout;

use super::opener::Opener;
use super::pooler::{FORGET, Pooler};

/// A second connection that takes longer to open waits for the first one's process, or for another one to get free.
const SECOND_TIMEOUT: Duration = Duration::from_secs(1);

/// How often both connections are asked which process serves them: others may borrow these meanwhile.
const ROUNDS: usize = 10;

/// Finds out what the opener's connections lead to. `None` if that cannot be told: there is one connection to be
/// had, and no second one.
pub(super) async fn find_pooler(opener: &Opener) -> Result<Option<Pooler>, sqlx::Error> {
    let mut one = opener.open().await?;
    let Ok(other) = timeout(SECOND_TIMEOUT, opener.open()).await else { return Ok(None) };
    let mut other = other?;
    let process = process_of(&mut one).await?;
    for _ in 0..ROUNDS {
        if process_of(&mut other).await? == process || process_of(&mut one).await? != process {
            return names(&mut one).await.map(Some);
        }
    }
    Ok(Some(Pooler::None))
}

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
