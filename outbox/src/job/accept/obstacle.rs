//! What keeps jobs from being accepted, found out without one.

use sqlx::error::DatabaseError;

use super::{Keys, insert};
use crate::service::database::{Pool, on_connection, takes_no_writes};

/// Why no job can be accepted now. The text is for whoever runs the service, and shows nothing of what the database said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// A server or a session that takes no writes.
    #[error("read-only or in recovery: it takes no writes")]
    ReadOnly,
    /// SQLSTATE 42501.
    #[error("the api's user, or the owner of Outhook's functions, lacks a right: see outhook migrate --roles")]
    NoRight,
    /// Any other of class 42: what the statements name is not there.
    #[error("a table or one of its columns is not in the schema public, or a function of Outhook's is not there")]
    NotFound,
    /// SQLSTATE 2200H: each outbox row needs a number.
    #[error("the sequence outbox_id_seq is used up")]
    NoNumbers,
    /// SQLSTATE 55P03.
    #[error("a table is locked")]
    Locked,
    /// Commits wait for something that the server waits for without limit.
    #[error("a commit does not end: see whether a synchronous standby or the disk is away")]
    CommitsWait,
    /// All of the pool are in use, or none can be opened.
    #[error("no connection in time")]
    NoConnection,
    /// Anything else.
    #[error("does not answer")]
    Unanswered,
}

/// Does what [`super::accept`] does, with no job and no key: Postgres checks the tables, the rights, and whether it takes
/// writes all the same. Nothing is written, no number of the sequence is used up, and no commit has anything to wait for.
///
/// # Errors
/// What is in the way.
pub async fn find_obstacle(pool: &Pool) -> Result<(), Obstacle> {
    if pool.is_overdue() {
        return Err(Obstacle::CommitsWait);
    }
    let asked = on_connection(pool, async |connection| insert(connection, &[], Some(&Keys::default())).await).await;
    asked.map(drop).map_err(|error| Obstacle::of(&error))
}

impl Obstacle {
    /// Classifies by SQLSTATE (Postgres manual, appendix A).
    fn of(error: &sqlx::Error) -> Self {
        if matches!(error, sqlx::Error::PoolTimedOut) {
            return Self::NoConnection;
        }
        if takes_no_writes(error) {
            return Self::ReadOnly;
        }
        let code = error.as_database_error().and_then(DatabaseError::code);
        match code.as_deref() {
            Some("2200H") => Self::NoNumbers,
            Some("42501") => Self::NoRight,
            Some("55P03") => Self::Locked,
            Some(code) if code.starts_with("42") => Self::NotFound,
            _ => Self::Unanswered,
        }
    }
}
