//! What the tasks of a worker share.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use outbox::service::database::{JOIN_BY_HASH, Pool};
use outbox::service::notify::Notifier;
use outbox::service::reload::Renewed;
use outbox::service::telemetry::Readiness;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::config::Config;
use crate::intake::Progress;
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

/// Kept of the shutdown's time, to record the attempts whose responses did not come.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// What a worker's tasks share.
pub(crate) struct Worker {
    /// Unique among all workers: shown in `webhook_jobs.claimed_by`.
    pub name: String,
    pub config: Config,
    pub pool: Pool,
    /// As its secrets and certificates were read last: see [`outbox::service::reload`].
    sender: Renewed<Sender>,
    pub settler: Settler,
    /// Batches claimed so far.
    pub claims: AtomicU64,
    pub reporter: Reporter,
    /// Whose turn it is to give tasks back.
    pub giving_back: Semaphore,
    /// Whose turn it is to write a pause or to reserve slots: a row of theirs may be held by somebody.
    pub asking: Semaphore,
    /// Whose turn it is to say what waits here.
    pub saying: Arc<Semaphore>,
    /// What becomes of the deliveries, for whoever gives out the slots. Two words a slot and one a limited destination,
    /// so it needs no bound of its own; one that was lost would be a slot that is lost.
    pub progress: mpsc::UnboundedSender<Progress>,
    /// The deliveries under way.
    pub deliveries: TaskTracker,
    /// Ends the requests under way.
    pub abort: CancellationToken,
    pub readiness: Readiness,
}

impl Worker {
    pub(crate) fn start(
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

    pub(crate) fn sender(&self) -> Arc<Sender> {
        self.sender.get()
    }

    /// Requests under way are sent as they began, and the connection to RabbitMQ stays.
    pub(crate) fn renew(&self, config: Config) -> anyhow::Result<()> {
        config.check()?;
        self.sender.set(sender(&config)?);
        traces::renew(&config.traces);
        self.config.broker.renew(config.broker);
        Ok(())
    }

    /// Waits for the deliveries under way; those that do not end in time are recorded as unknown.
    pub(crate) async fn drain(&self) {
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
