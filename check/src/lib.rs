//! The invariants of what Outhook writes, checked in the database that it wrote.
//!
//! A checker of its own, with SQL of its own: it shares no statement with the programs that it judges. The
//! tests add what only they can know, the callers' and the receivers' side (`tests/harness/invariants.rs`).

use std::fmt::{self, Display};
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};

/// What holds at any moment.
pub const ALWAYS: &str = include_str!("../sql/always.sql");

/// What holds besides when nothing is under way.
pub const AT_REST: &str = include_str!("../sql/at_rest.sql");

/// Offending rows shown of one invariant.
const ROWS_SHOWN: usize = 10;

/// One invariant: a sentence, and the statement that finds what breaks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invariant {
    /// Its name and what it says, as in `I3: nothing is overdue`.
    pub sentence: &'static str,
    statement: &'static str,
}

/// The invariants of a file like [`ALWAYS`], in their order: blocks parted by an empty line, each headed by
/// a comment with the sentence.
pub fn invariants(file: &'static str) -> impl Iterator<Item = Invariant> {
    file.split("\n\n").filter_map(|block| {
        let (sentence, statement) = block.trim().strip_prefix("-- ")?.split_once('\n')?;
        let is_named = sentence.split_once(": ").is_some_and(|(name, _)| name.len() <= 3);
        is_named.then_some(Invariant { sentence, statement })
    })
}

/// What the invariants depend on besides the rows.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// For how long a row may be due, or a session idle in a transaction.
    pub overdue: Duration,
    /// Attempts in all of a job that does not say it itself; not checked when `None`.
    pub max_retries: Option<u32>,
}

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What it says.
    pub sentence: &'static str,
    /// The rows that break it, in words.
    pub rows: Vec<String>,
}

impl Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} -- broken by {} rows:", self.sentence, self.rows.len())?;
        self.rows.iter().take(ROWS_SHOWN).try_for_each(|row| write!(formatter, "\n    {row}"))?;
        if self.rows.len() > ROWS_SHOWN { write!(formatter, "\n    …") } else { Ok(()) }
    }
}

/// Makes the connection ready: a transaction that sees one moment and writes nothing, however long it reads.
///
/// # Errors
/// The database cannot be asked.
pub async fn begin_snapshot(connection: &mut PgConnection, statement_timeout: Duration) -> Result<(), sqlx::Error> {
    let timeout = statement_timeout.as_millis();
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
         SET LOCAL search_path = public, pg_catalog;
         SET LOCAL statement_timeout = {timeout};
         -- Unlike the services' own statements, these read whole tables.
         SET LOCAL enable_seqscan = on;
         SET LOCAL enable_bitmapscan = on"
    );
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(connection).await.map(|_| ())
}

/// Whether the states of all sessions can be seen. To a role without that right Postgres shows none, and a session
/// that stands idle in a transaction would go unnoticed.
///
/// # Errors
/// The database cannot be asked.
pub async fn sees_all_sessions(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let hidden = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND usesysid IS NOT NULL AND query = '<insufficient privilege>'";
    let hidden: i64 = sqlx::query_scalar(hidden).fetch_one(connection).await?;
    Ok(hidden == 0)
}

/// Finds what breaks one invariant. `None` is good.
///
/// # Errors
/// The database cannot be asked.
pub async fn check(
    connection: &mut PgConnection,
    invariant: Invariant,
    bounds: Bounds,
) -> Result<Option<Violation>, sqlx::Error> {
    // For the session: it costs nothing, and holds with and without a transaction.
    sqlx::query(
        "SELECT set_config('outhook_check.overdue', $1, false), set_config('outhook_check.max_retries', $2, false)",
    )
    .bind(format!("{} milliseconds", bounds.overdue.as_millis()))
    .bind(bounds.max_retries.map_or_else(String::new, |number| number.to_string()))
    .execute(&mut *connection)
    .await?;
    let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(invariant.statement)).fetch_all(connection).await?;
    Ok((!rows.is_empty()).then_some(Violation { sentence: invariant.sentence, rows }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_statement_has_its_sentence() {
        for (file, count) in [(ALWAYS, 15), (AT_REST, 1)] {
            let found: Vec<_> = invariants(file).collect();
            assert_eq!(found.len(), count, "{found:#?}");
            assert_eq!(found.iter().filter(|it| it.statement.starts_with("SELECT")).count(), count);
        }
    }

    #[test]
    fn a_violation_shows_some_of_its_rows() {
        let violation = Violation { sentence: "I2: x", rows: vec!["row".to_owned(); ROWS_SHOWN + 1] };
        let text = violation.to_string();
        assert_eq!(text.matches("row\n").count(), ROWS_SHOWN, "{text}");
        assert!(text.starts_with("I2: x -- broken by 11 rows:") && text.ends_with('…'), "{text}");
    }
}
