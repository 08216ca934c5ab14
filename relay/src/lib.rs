//! The relay: moves what is due in the outbox into RabbitMQ.
//!
//! A row is recorded as published only after the broker's confirm. Killed in between, the relay leaves
//! the row due, and the next one publishes the same message id again.

mod config;
mod confirms;
mod counts;
mod flow;
mod lane;
mod lost;
mod measures;
mod members;
mod missing;
mod next;
mod old_keys;
mod publish_due;
mod publisher;
mod queue_length;
mod scan_start;
mod scan_window;
mod trace;
mod turns;
mod upkeep;
mod wake;

pub use config::Config;
pub use measures::METRICS;

use std::time::Duration;

use outbox::service::telemetry::Readiness;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::lane::Lane;
use crate::queue_length::QueueLength;
use crate::upkeep::{Latecomers, Upkeep};

/// For so long the first lane is alone: it declares the queue, if there is none, by the first host, which then mostly leads
/// it. Workers begin with another one.
const FIRST_LANE_ALONE: Duration = Duration::from_secs(1);

/// Publishes until `stop`, then finishes the batches under way.
///
/// # Errors
/// The database's schema is not the one of this build, or its sessions are lent for a transaction only.
pub async fn run(config: Config, stop: CancellationToken, readiness: Readiness) -> anyhow::Result<()> {
    config.database.require_session("outhook-relay", &stop).await?;
    let (notified, waker) = wake::listen(config.database.clone(), stop.clone());
    let (latecomers, queue) = (Latecomers::default(), QueueLength::default());
    let mut lanes = JoinSet::new();
    lanes.spawn(Upkeep::new(config.clone(), waker, latecomers.clone(), queue.clone()).run(stop.clone()));
    // By two nodes, if there are several: while one of them stands still, what goes by the other goes on.
    let fewest = if config.broker.has_several_hosts() { 2 } else { 1 };
    for number in 0..config.publish.relay_lanes.max(fewest) {
        let shared = (notified.clone(), latecomers.clone(), readiness.clone(), queue.clone());
        let (lane, stop) = (Lane::new(config.clone(), shared, stop.clone()), stop.clone());
        lanes.spawn(async move {
            if number > 0 {
                stop.run_until_cancelled(sleep(FIRST_LANE_ALONE)).await;
            }
            lane.run().await;
        });
    }
    lanes.spawn(members::watch(config.members.clone(), config.broker.clone(), stop.clone()));
    stop.cancelled().await;
    // A batch that does not end in time is left as a kill would leave it: due, to be published again.
    let drained = tokio::time::timeout(config.shutdown.timeout(), lanes.join_all()).await;
    info!(drained = drained.is_ok(), "stopped");
    Ok(())
}
