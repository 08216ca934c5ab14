//! Refinery's migrations in a transaction that somebody else begins and commits.

use refinery::{AsyncMigrate, Migration};
use refinery_core::traits::r#async::{AsyncQuery, AsyncTransaction};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_postgres::{Error, Transaction};

/// By itself refinery commits each migration, and then a database could have the tables of one build and the functions of
/// another.
pub(crate) struct Within<'a>(pub(crate) &'a Transaction<'a>);

impl AsyncTransaction for Within<'_> {
    type Error = Error;

    async fn execute<'a, T: Iterator<Item = &'a str> + Send + 'a>(&mut self, statements: T) -> Result<usize, Error> {
        let mut executed = 0;
        for statement in statements {
            self.0.batch_execute(statement).await?;
            executed += 1;
        }
        Ok(executed)
    }
}

/// Only ever asked for what is recorded of migrations that were applied.
impl AsyncQuery<Vec<Migration>> for Within<'_> {
    async fn query(&mut self, query: &str) -> Result<Vec<Migration>, Error> {
        let rows = self.0.query(query, &[]).await?;
        let applied = rows.iter().map(|row| {
            // Whatever cannot be read is no obstacle but a difference: refinery then says which migration is another one.
            let applied_at = OffsetDateTime::parse(row.get(2), &Rfc3339).unwrap_or(OffsetDateTime::UNIX_EPOCH);
            let checksum = row.get::<_, &str>(3).parse().unwrap_or_default();
            Migration::applied(row.get(0), row.get(1), applied_at, checksum)
        });
        Ok(applied.collect())
    }
}

impl AsyncMigrate for Within<'_> {}
