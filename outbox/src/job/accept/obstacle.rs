//! What keeps jobs from being accepted, found out without one.

use sqlx::PgConnection;
use sqlx::error::DatabaseError;

use super::{find_keys, insert};
use crate::service::database::{Pool, on_connection, takes_no_writes};

/// Why no job can be accepted now. The text is for whoever runs the service, and shows nothing of what the database said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// A server or a session that takes no writes.
    #[error("read-only or in recovery: it takes no writes")]
    ReadOnly,
    /// SQLSTATE 42501, or a sequence that may not be used.
    #[error("the api's user lacks a right: see outhook migrate --roles")]
    NoRight,
    /// Any other of class 42: what the statements name is not there.
    #[error("a table or one of its columns is not in the schema public, or the api's user may not look into that")]
    NotFound,
    /// Each outbox row needs a number.
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

/// Does what [`super::accept`] does, with no job: Postgres checks the tables, the rights, and whether it takes writes all
/// the same. Nothing is written, no number of the sequence is used up, and no commit has anything to wait for.
///
/// # Errors
/// What is in the way.
pub async fn find_obstacle(pool: &Pool) -> Result<(), Obstacle> {
    if pool.is_overdue() {
        return Err(Obstacle::CommitsWait);
    }
    let asked = on_connection(pool, async |connection| {
        insert(connection, &[]).await?;
        find_keys(connection, &[]).await?;
        look_at_sequence(connection).await
    });
    asked.await.unwrap_or_else(|error| Err(Obstacle::of(&error)))
}

/// The one thing that no job needs and each one does.
async fn look_at_sequence(connection: &mut PgConnection) -> Result<Result<(), Obstacle>, sqlx::Error> {
    let sequence = sqlx::query!(
        r#"-- look_at_outbox_id_seq
        SELECT has_sequence_privilege('outbox_id_seq', 'USAGE') AS "is_granted!",
               -- NULL before the first one.
               coalesce(last_value < max_value, true) AS "is_left!"
        FROM pg_sequences WHERE schemaname = 'public' AND sequencename = 'outbox_id_seq'"#
    )
    .fetch_one(connection)
    .await?;
    Ok(match (sequence.is_granted, sequence.is_left) {
        (false, _) => Err(Obstacle::NoRight),
        (true, false) => Err(Obstacle::NoNumbers),
        (true, true) => Ok(()),
    })
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
            Some("42501") => Self::NoRight,
            Some("55P03") => Self::Locked,
            Some(code) if code.starts_with("42") => Self::NotFound,
            _ => Self::Unanswered,
        }
    }
}
