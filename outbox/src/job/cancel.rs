//! Withdrawing a job that nobody is delivering.
//!
//! The rule is the SQL function `outhook.cancel`, so that psql and the HTTP API cannot differ. Its task
//! may be on its way all the same: the claim refuses it, and the worker drops it.

use uuid::Uuid;

use crate::service::database::{Pool, on_connection};

/// What became of the wish to cancel a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancellation {
    /// The job is cancelled, now or before.
    Cancelled,
    /// The job is being delivered, or has ended otherwise: nothing was written.
    TooLate,
    /// There is no such job.
    UnknownJob,
}

/// Cancels a job if it is pending: the job and its outbox row change together.
///
/// # Errors
/// The statement failed, or waited too long for whoever holds the job or its outbox row. It may be repeated.
pub async fn cancel(pool: &Pool, job_id: Uuid) -> Result<Cancellation, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        "-- cancel_job
        SELECT outhook.cancel($1)",
        job_id
    );
    let cancelled = on_connection(pool, async |connection| statement.fetch_one(connection).await).await?;
    Ok(match cancelled {
        Some(true) => Cancellation::Cancelled,
        Some(false) => Cancellation::TooLate,
        None => Cancellation::UnknownJob,
    })
}
