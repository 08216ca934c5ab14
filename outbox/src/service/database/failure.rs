//! What became of a statement.

use std::borrow::Cow;

use tracing::error;

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
        match error.sql_state().as_deref() {
            Some("55P03") => Self::Locked,
            Some(code) if code.starts_with("40") => Self::Conflict,
            // No fault of the statement's: a sequence is used up.
            Some("2200H") => Self::Unavailable,
            Some(code) if code.starts_with("22") || code.starts_with("23") => Self::Rejected,
            _ => Self::Unavailable,
        }
    }
}

/// Whether a statement failed for what one of its rows holds (classes 22 and 23, XX001 and XX002 for damaged data, 58030
/// for a page that the disk does not give; Postgres manual, appendix A): nothing was written, and without that row it may
/// work. A sequence that is used up is nobody's row.
#[must_use]
pub fn is_of_one_row(error: &impl HasSqlState) -> bool {
    let classes = ["22", "23", "XX001", "XX002", "58030"];
    error.sql_state().is_some_and(|code| code != "2200H" && classes.iter().any(|class| code.starts_with(class)))
}

/// Says so if a change of state wrote another number of rows than it was given, which were there and locked. It is committed
/// all the same: what is damaged must not stop the rest.
pub(crate) fn check_rows(statement: &'static str, expected: usize, written: u64) {
    if written != expected as u64 {
        error!(
            statement,
            expected,
            written,
            "a statement wrote another number of rows than are there: see whether an index is damaged"
        );
        debug_assert!(false, "{statement} wrote {written} rows instead of {expected}");
    }
}

/// An error of either driver.
pub trait HasSqlState {
    /// What the server calls it, if it has said so.
    fn sql_state(&self) -> Option<Cow<'_, str>>;
}

impl HasSqlState for sqlx::Error {
    fn sql_state(&self) -> Option<Cow<'_, str>> {
        self.as_database_error().and_then(sqlx::error::DatabaseError::code)
    }
}

impl HasSqlState for tokio_postgres::Error {
    fn sql_state(&self) -> Option<Cow<'_, str>> {
        self.code().map(|state| state.code().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Code(Option<&'static str>);

    impl HasSqlState for Code {
        fn sql_state(&self) -> Option<Cow<'_, str>> {
            self.0.map(Cow::Borrowed)
        }
    }

    #[test]
    fn what_one_row_holds_is_told_from_what_ails_the_server() {
        for of_one_row in ["22P02", "23514", "XX001", "XX002", "58030"] {
            assert!(is_of_one_row(&Code(Some(of_one_row))), "{of_one_row}");
        }
        for of_all in [None, Some("2200H"), Some("25006"), Some("40001"), Some("53100"), Some("57P01"), Some("XX000")] {
            assert!(!is_of_one_row(&Code(of_all)), "{of_all:?}");
        }
    }
}
