//! What is tried until Postgres answers.

use std::time::Duration;

use outbox::service::backoff::Backoff;
use outbox::service::database::is_of_one_row;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Between two tries.
pub(crate) fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(20), Duration::from_secs(1))
}

/// Repeats a statement until the database answers. `None` at the stop, and if Postgres cannot read one of the rows.
pub(crate) async fn patiently<T, Statement>(stop: &CancellationToken, statement: impl Fn() -> Statement) -> Option<T>
where
    Statement: Future<Output = Result<T, sqlx::Error>>,
{
    let mut backoff = backoff();
    loop {
        match statement().await {
            Ok(value) => return Some(value),
            Err(error) if is_of_one_row(&error) => return None,
            Err(error) => warn!(%error, "cannot ask the database; trying again"),
        }
        stop.run_until_cancelled(sleep(backoff.next_wait())).await?;
    }
}
