//! The worker's life: it consumes, connects anew when RabbitMQ is lost, and ends what is under way at the stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use outbox::service::backoff::Backoff;
use outbox::service::installation::installation;
use outbox::service::reload::Hangups;
use outbox::service::telemetry::{Readiness, Server};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config::Config;
use crate::consumer::{ConsumerState, consume};
use crate::intake::Intake;
use crate::patience::patiently;
use crate::queue::delete_broken_queue;
use crate::worker::Worker;

/// For so long the broker must fail at its queue, and at nothing else, before that is deleted: after a start
/// it may need a moment. A broker that does not answer has failed for the second time after 11 s.
const BROKEN_QUEUE_PATIENCE: Duration = Duration::from_secs(2);

/// In a cluster it may be that the queue's leader stands still, which new consumers wait for until Erlang has given up its
/// node: a minute and some. The queue is well then, and to delete it would wait as long.
const LEADER_PATIENCE: Duration = Duration::from_secs(90);

/// Delivers until `stop`, then finishes what is under way.
///
/// # Errors
/// The database's schema is not the one of this build.
pub async fn run(
    config: Config,
    stop: CancellationToken,
    hangups: Hangups,
    readiness: Readiness,
) -> anyhow::Result<()> {
    config.database.require_schema("outhook-worker", &stop).await?;
    let bounds = config.bounds();
    let (sender, progress) = mpsc::unbounded_channel();
    config.broker.begin_elsewhere();
    let worker = Worker::start(config, sender, readiness)?;
    worker.readiness.ask_by(worker.pool.clone());
    let renewed = Arc::clone(&worker);
    hangups.apply(move |config: Config| renewed.renew(config));
    let asked = stop.run_until_cancelled(patiently(&stop, || installation(&worker.pool))).await;
    let Some(installation) = asked.flatten() else {
        worker.drain().await;
        ensure!(stop.is_cancelled(), "the table installation cannot be read");
        return Ok(());
    };
    let mut state = ConsumerState::new(Intake::new(bounds), progress, installation);
    let mut backoff = Backoff::reconnect();
    let mut broken_since: Option<Instant> = None;
    while !stop.is_cancelled() {
        match Box::pin(consume(&worker, &mut state, &stop, &mut backoff)).await {
            Ok(subscription) => {
                worker.drain().await;
                subscription.close().await;
                return Ok(());
            }
            Err(_) if stop.is_cancelled() => break,
            Err(lost) => {
                worker.readiness.lost(Server::RabbitMq, "is not consumed from");
                warn!(error = %lost, "not consuming; deliveries under way go on");
                broken_since = lost.is_of_a_broken_queue().then(|| broken_since.unwrap_or_else(Instant::now));
                let may_lack_a_leader = lost.is_timeout() && worker.config.broker.has_several_hosts();
                let patience = if may_lack_a_leader { LEADER_PATIENCE } else { BROKEN_QUEUE_PATIENCE };
                if broken_since.is_some_and(|since| since.elapsed() >= patience) {
                    stop.run_until_cancelled(delete_broken_queue(&worker)).await;
                    broken_since = None;
                }
            }
        }
        metrics::counter!("outhook_worker_reconnects_total").increment(1);
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(backoff.next_wait()) => {}
        }
    }
    worker.drain().await;
    Ok(())
}
