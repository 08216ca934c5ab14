//! Records what became of a batch.

use std::time::Duration;

use tokio_postgres::{Error, GenericClient};

use super::statements::Statements;
use crate::service::database::check_rows;

/// Records that the broker confirmed these rows; should their tasks get lost, they are due again after
/// `republish_after`.
///
/// # Errors
/// The database cannot be asked.
pub async fn mark_published(
    transaction: &impl GenericClient,
    statements: &Statements,
    ids: &[i64],
    republish_after: Duration,
) -> Result<(), Error> {
    let marked = transaction.execute(&statements.mark_published, &[&ids, &republish_after.as_secs_f64()]).await?;
    // They are locked since claim_due.
    check_rows("mark_published", ids.len(), marked);
    Ok(())
}

/// Leaves rows that were not confirmed for later.
///
/// # Errors
/// The database cannot be asked.
pub async fn postpone(transaction: &impl GenericClient, ids: &[i64], delay: Duration) -> Result<(), Error> {
    transaction
        .execute(
            "-- postpone_due
            UPDATE outbox SET due_at = statement_timestamp() + make_interval(secs => $2) WHERE id = ANY($1)",
            &[&ids, &delay.as_secs_f64()],
        )
        .await?;
    Ok(())
}
