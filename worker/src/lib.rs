//! The worker: claims jobs as their messages come, delivers them and records what happened.
//!
//! consume → claim → guard the target → sign → POST → classify → settle → ack after the commit. The
//! transactions are short and nothing is held over the request but a lease, which outlasts it.

mod answers;
mod config;
mod consumer;
mod deliver;
mod egress;
mod intake;
mod keyring;
mod outcome;
mod refused;
mod reporter;
mod send_error;
mod sender;
mod settler;
mod signature;
mod status_set;
mod target_guard;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use outbox::backoff::Backoff;
use outbox::database::JOIN_BY_HASH;
use outbox::notify::Notifier;
use sqlx::PgPool;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

pub use config::Config;
pub use egress::KeyMismatch;

use crate::consumer::{Desk, Stopped};
use crate::intake::{Intake, Progress};
use crate::keyring::Keyring;
use crate::reporter::Reporter;
use crate::sender::Sender;
use crate::settler::Settler;

/// Connections to Postgres: one for claims, two for settlements, one for what was refused, one for reports.
const DATABASE_CONNECTIONS: u32 = 5;

/// A pool that is exhausted for longer is as good as a database that is away.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// For so long the broker must fail at its queue, and at nothing else, before that is deleted: after a start
/// it may need a moment. A broker that does not answer has failed for the second time after 11 s.
const BROKEN_QUEUE_PATIENCE: Duration = Duration::from_secs(2);

/// Kept of the shutdown's time, to record the attempts whose answers did not come.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// What a worker's tasks share.
pub(crate) struct Worker {
    /// Unique among all workers: shown in `webhook_jobs.claimed_by`.
    name: String,
    config: Config,
    pool: PgPool,
    sender: Sender,
    settler: Settler,
    /// Batches claimed so far.
    claims: AtomicU64,
    reporter: Reporter,
    /// What becomes of the deliveries, for whoever gives out the slots.
    progress: mpsc::Sender<Progress>,
    /// The deliveries under way.
    deliveries: TaskTracker,
    /// Ends the requests under way.
    abort: CancellationToken,
}

impl Worker {
    fn start(config: Config, progress: mpsc::Sender<Progress>) -> anyhow::Result<Arc<Self>> {
        let pool = config.database.pool_with("outhook-worker", DATABASE_CONNECTIONS, ACQUIRE_TIMEOUT, &[JOIN_BY_HASH]);
        let notifier = Notifier::start(config.database.pool("outhook-worker notify", 1, ACQUIRE_TIMEOUT));
        let keyring = Keyring::new(config.secrets.clone(), config.delivery.webhook_signing_secret.clone());
        let hostname = whoami::hostname().unwrap_or_else(|_| "worker".to_owned());
        Ok(Arc::new(Self {
            name: format!("{hostname}-{:08x}", rand::random::<u32>()),
            sender: Sender::new(&config.delivery, config.targets.clone(), &config.egress, keyring)?,
            settler: Settler::start(pool.clone(), notifier, config.delivery.prefetch().into()),
            claims: AtomicU64::new(0),
            reporter: Reporter::start(pool.clone(), config.fairness.cool_down()),
            progress,
            pool,
            deliveries: TaskTracker::new(),
            abort: CancellationToken::new(),
            config,
        }))
    }

    /// Waits for the deliveries under way; those that do not end in time are recorded as unknown.
    async fn drain(&self) {
        self.deliveries.close();
        let limit = self.config.shutdown.timeout();
        let settle_time = SETTLE_TIME.min(limit / 2);
        if timeout(limit.saturating_sub(settle_time), self.deliveries.wait()).await.is_err() {
            warn!(deliveries = self.deliveries.len(), "giving up on answers that do not come");
            self.abort.cancel();
            let _ = timeout(settle_time, self.deliveries.wait()).await;
        }
        // What is left was not recorded: its lease ends, and another worker records it as unknown.
        info!(left = self.deliveries.len(), "stopped");
    }
}

/// Deletes a queue that nobody can consume; the relay makes it anew, and what was in it is due again.
async fn delete_broken_queue(worker: &Worker) {
    let deleted = worker.config.broker.delete_queue("outhook-worker").await;
    warn!(?deleted, "the broker's queue is broken: deleted it, so that the relay declares it anew");
    metrics::counter!("outhook_worker_broken_queues_total").increment(1);
}

/// Delivers until `stop`, then finishes what is under way.
///
/// # Errors
/// The database's schema is not the one of this build.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    config.database.require_schema("outhook-worker", &stop).await?;
    let bounds = config.bounds();
    let (sender, progress) = mpsc::channel(2 * bounds.slots);
    let worker = Worker::start(config, sender)?;
    let mut desk = Desk { intake: Intake::new(bounds), progress };
    let mut backoff = Backoff::reconnect();
    let mut broken_since: Option<Instant> = None;
    while !stop.is_cancelled() {
        match consumer::consume(&worker, &mut desk, &stop, &mut backoff).await {
            Ok(Stopped { connection, channel }) => {
                worker.drain().await;
                drop(channel);
                // The last acks went out; RabbitMQ hands on whatever is left.
                let _ = timeout(SETTLE_TIME, connection.close(200, "bye".into())).await;
                return Ok(());
            }
            Err(_) if stop.is_cancelled() => break,
            Err(lost) => {
                warn!(error = %lost, "not consuming; deliveries under way go on");
                broken_since = lost.is_of_a_broken_queue().then(|| broken_since.unwrap_or_else(Instant::now));
            }
        }
        if broken_since.is_some_and(|since| since.elapsed() >= BROKEN_QUEUE_PATIENCE) {
            stop.run_until_cancelled(delete_broken_queue(&worker)).await;
            broken_since = None;
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
