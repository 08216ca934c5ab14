//! The worker: claims jobs as their messages come, delivers them and records what happened.
//!
//! consume → claim → guard the target → sign → POST → classify → settle → ack after the commit. The
//! transactions are short and nothing is held over the request but a lease, which outlasts it.

mod answers;
mod config;
mod consumer;
mod deliver;
mod egress;
mod give_back;
mod intake;
mod keyring;
mod measures;
mod outcome;
mod reporter;
mod send_error;
mod sender;
mod settler;
mod signature;
mod status_set;
mod strays;
mod subscription;
mod target_guard;
mod tls;
mod trace;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::ensure;
use outbox::backoff::Backoff;
use outbox::database::{JOIN_BY_HASH, Pool};
use outbox::installation::installation;
use outbox::notify::Notifier;
use outbox::reload::{Hangups, Renewed};
use outbox::telemetry::{Readiness, Server};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

pub use config::Config;
pub use egress::KeyMismatch;
pub use measures::METRICS;

use crate::consumer::Desk;
use crate::intake::{Intake, Progress};
use crate::keyring::Keyring;
use crate::reporter::Reporter;
use crate::sender::{Sender, SetupError};
use crate::settler::Settler;

/// Connections to Postgres: one for claims, two for settlements, one for those that somebody held, one for what is given
/// back, one for reports, two for pauses and slots.
const DATABASE_CONNECTIONS: u32 = 8;

/// A statement for many jobs waits no longer for one of their rows: it gives up, and the others are done without.
const LOCK_TIMEOUT: (&str, &str) = ("lock_timeout", "200ms");

/// A pool that is exhausted for longer is as good as a database that is away.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// For so long the broker must fail at its queue, and at nothing else, before that is deleted: after a start
/// it may need a moment. A broker that does not answer has failed for the second time after 11 s.
const BROKEN_QUEUE_PATIENCE: Duration = Duration::from_secs(2);

/// In a cluster it may be that the queue's leader stands still, which new consumers wait for until Erlang has given up its
/// node: a minute and some. The queue is well then, and to delete it would wait as long.
const LEADER_PATIENCE: Duration = Duration::from_secs(90);

/// Kept of the shutdown's time, to record the attempts whose answers did not come.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// What a worker's tasks share.
pub(crate) struct Worker {
    /// Unique among all workers: shown in `webhook_jobs.claimed_by`.
    name: String,
    config: Config,
    pool: Pool,
    /// As its secrets and certificates were read last: see [`outbox::reload`].
    sender: Renewed<Sender>,
    settler: Settler,
    /// Batches claimed so far.
    claims: AtomicU64,
    reporter: Reporter,
    /// Whose turn it is to give messages back.
    giving_back: Semaphore,
    /// Whose turn it is to write a pause or to reserve slots: a row of theirs may be held by somebody.
    asking: Semaphore,
    /// Whose turn it is to say what waits here.
    saying: Arc<Semaphore>,
    /// What becomes of the deliveries, for whoever gives out the slots. Two words a slot and one a limited destination,
    /// so it needs no bound of its own; one that was lost would be a slot that is lost.
    progress: mpsc::UnboundedSender<Progress>,
    /// The deliveries under way.
    deliveries: TaskTracker,
    /// Ends the requests under way.
    abort: CancellationToken,
    readiness: Readiness,
}

impl Worker {
    fn start(
        config: Config,
        progress: mpsc::UnboundedSender<Progress>,
        readiness: Readiness,
    ) -> anyhow::Result<Arc<Self>> {
        let pool = config.database.pool_with(
            "outhook-worker",
            DATABASE_CONNECTIONS,
            ACQUIRE_TIMEOUT,
            &[JOIN_BY_HASH, LOCK_TIMEOUT],
        );
        let notifier = Notifier::start(config.database.pool("outhook-worker notify", 1, ACQUIRE_TIMEOUT));
        let hostname = whoami::hostname().unwrap_or_else(|_| "worker".to_owned());
        Ok(Arc::new(Self {
            name: format!("{hostname}-{:08x}", rand::random::<u32>()),
            sender: Renewed::new(sender(&config)?),
            settler: Settler::start(pool.clone(), notifier, config.delivery.prefetch().into()),
            claims: AtomicU64::new(0),
            reporter: Reporter::start(pool.clone(), config.fairness.cool_down()),
            giving_back: Semaphore::new(1),
            asking: Semaphore::new(2),
            saying: Arc::new(Semaphore::new(1)),
            progress,
            pool,
            deliveries: TaskTracker::new(),
            abort: CancellationToken::new(),
            readiness,
            config,
        }))
    }

    fn sender(&self) -> Arc<Sender> {
        self.sender.get()
    }

    /// Requests under way are sent as they began, and the connection to RabbitMQ stays.
    fn renew(&self, config: Config) -> anyhow::Result<()> {
        config.check()?;
        self.sender.set(sender(&config)?);
        traces::renew(&config.traces);
        self.config.broker.renew(config.broker);
        Ok(())
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

fn sender(config: &Config) -> Result<Sender, SetupError> {
    let keyring = Keyring::new(config.secrets.clone(), config.delivery.webhook_signing_secret.clone());
    Sender::new(&config.delivery, config.targets.clone(), &config.egress, keyring)
}

/// Deletes a queue that nobody can consume; the relay makes it anew, and what was in it is due again.
async fn delete_broken_queue(worker: &Worker) {
    match worker.config.broker.delete_queue("outhook-worker").await {
        Ok(()) => warn!("the broker's queue is broken: deleted it, so that the relay declares it anew"),
        Err(error) => warn!(%error, "the broker's queue is broken and cannot be deleted"),
    }
    metrics::counter!("outhook_worker_broken_queues_total").increment(1);
}

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
    let asked = stop.run_until_cancelled(consumer::patiently(&stop, || installation(&worker.pool))).await;
    let Some(installation) = asked.flatten() else {
        worker.drain().await;
        ensure!(stop.is_cancelled(), "the table installation cannot be read");
        return Ok(());
    };
    let mut desk = Desk::new(Intake::new(bounds), progress, installation);
    let mut backoff = Backoff::reconnect();
    let mut broken_since: Option<Instant> = None;
    while !stop.is_cancelled() {
        match Box::pin(consumer::consume(&worker, &mut desk, &stop, &mut backoff)).await {
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
