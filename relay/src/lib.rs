//! The relay: moves what is due in the outbox into RabbitMQ.
//!
//! A row is recorded as published only after the broker's confirm. Killed in between, the relay leaves
//! the row due, and the next one publishes the same message id again.

mod config;
mod lane;
mod publish_due;
mod publisher;
mod wake;

pub use config::Config;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::lane::Lane;

/// Publishes until `stop`, then finishes the batches under way.
///
/// # Errors
/// The database's schema is not the one of this build.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    config.database.require_schema("outhook-relay", &stop).await?;
    let notified = wake::listen(config.database.clone(), stop.clone());
    let mut lanes = JoinSet::new();
    for _ in 0..config.publish.relay_lanes {
        lanes.spawn(Lane::new(config.clone(), notified.clone(), stop.clone()).run());
    }
    stop.cancelled().await;
    // A batch that does not end in time is left as a kill would leave it: due, to be published again.
    let drained = tokio::time::timeout(config.shutdown.timeout(), lanes.join_all()).await;
    info!(drained = drained.is_ok(), "stopped");
    Ok(())
}
