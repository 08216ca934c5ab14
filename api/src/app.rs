//! What the handlers share: the configuration as it is now, and Postgres once it was found.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use outbox::service::database::Pool;
use outbox::service::notify::Notifier;
use outbox::service::reload::Renewed;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::Config;
use crate::error::ApiError;
use crate::ingest::{Ingest, Pools};
use crate::readiness::Readiness;

/// A batch waits no longer for a connection to Postgres. Two waits in a row, a caller's own batch's and that
/// of the batch before, stay within 2 s; so do the two with the waits for locks that follow.
const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(900);

/// A batch waits no longer for what another transaction holds.
const LOCK_TIMEOUT: Duration = Duration::from_millis(800);

/// Nor does each of its jobs, tried by itself after the batch has waited in vain.
const SINGLE_LOCK_TIMEOUT: Duration = Duration::from_millis(50);

/// A transaction that accepts a batch is idle only between two statements; one that is idle for longer belongs to
/// an api that vanished, and must not hold its keys until the network notices.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections for what only reads.
const READING_CONNECTIONS: u32 = 4;

/// Connections for changes of what was accepted, and of keys.
const CHANGING_CONNECTIONS: u32 = 2;

pub(crate) struct App {
    /// As it was read last: see [`outbox::service::reload`].
    config: Renewed<Config>,
    postgres: OnceLock<Postgres>,
    pub metrics: PrometheusHandle,
    /// Asked to end, and soon listening no more.
    pub stop: CancellationToken,
}

/// What a schema of this build is needed for.
pub(crate) struct Postgres {
    pub ingest: Ingest,
    pub readiness: Readiness,
    /// For what only reads: many readers never keep a job from being accepted.
    pub pool: Pool,
    /// For what changes something but accepts nothing: a commit that does not end keeps no reader waiting.
    pub changes: Pool,
}

impl App {
    pub(crate) fn new(config: Config, metrics: PrometheusHandle, stop: CancellationToken) -> Self {
        Self { config: Renewed::new(config), postgres: OnceLock::new(), metrics, stop }
    }

    /// Waits until Postgres is there, with the schema of this build.
    pub(crate) async fn find_postgres(&self) -> anyhow::Result<()> {
        // The same for both: what is read anew meanwhile knows nothing of what was found.
        let config = self.config();
        config.database.require_schema("outhook-api", &self.stop).await?;
        // Then it has stopped waiting, and seen nothing.
        if !self.stop.is_cancelled() {
            self.postgres.get_or_init(|| Postgres::open(&config));
            info!("ready: accepting webhooks");
        }
        Ok(())
    }

    pub(crate) fn renew(&self, config: Config) {
        traces::renew(&config.traces);
        self.config.set(config);
    }

    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.get()
    }

    /// 503 until it was found.
    pub(crate) fn postgres(&self) -> Result<&Postgres, ApiError> {
        self.postgres.get().ok_or(ApiError::Unanswered)
    }
}

impl Postgres {
    fn open(config: &Config) -> Self {
        let commits = config.accept.accept_concurrency.into();
        let accepting = |lock_timeout: Duration| {
            let milliseconds = |time: Duration| format!("{}ms", time.as_millis());
            let (lock_timeout, idle_timeout) = (milliseconds(lock_timeout), milliseconds(IDLE_TIMEOUT));
            let settings = [
                ("lock_timeout", lock_timeout.as_str()),
                ("idle_in_transaction_session_timeout", idle_timeout.as_str()),
            ];
            config.database.pool_with("outhook-api accept", commits, ACQUIRE_TIMEOUT, &settings)
        };
        let pools = Pools { together: accepting(LOCK_TIMEOUT), singly: accepting(SINGLE_LOCK_TIMEOUT) };
        let notifier = Notifier::start(config.database.pool("outhook-api notify", 1, ACQUIRE_TIMEOUT));
        let waiting = config.server.max_connections as usize;
        Self {
            readiness: Readiness::start(pools.together.clone(), waiting),
            ingest: Ingest::start(pools, notifier, &config.accept, waiting),
            pool: config.database.pool("outhook-api", READING_CONNECTIONS, ACQUIRE_TIMEOUT),
            changes: config.database.pool("outhook-api change", CHANGING_CONNECTIONS, ACQUIRE_TIMEOUT),
        }
    }
}
