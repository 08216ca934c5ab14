//! The api: accepts signed webhooks. A 202 is sent only after the commit that holds the job and its
//! outbox row.

mod authorized;
mod blocks;
mod body;
mod config;
mod connections;
mod descriptors;
mod envelope;
mod error;
mod ingest;
mod json;
mod measures;
mod owned_job;
mod readiness;
mod receipt;
mod request_id;
mod routes;
mod seldom;
mod server;
mod signature;
mod unreadable;
mod watched;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use axum::routing::{delete, get, post, put};
use axum::{Router, middleware};
use metrics_exporter_prometheus::PrometheusHandle;
use outbox::service::database::Pool;
use outbox::service::notify::Notifier;
use outbox::service::reload::{Hangups, Renewed};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use config::Config;
pub use measures::METRICS;

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

/// What the handlers share.
pub(crate) struct App {
    /// As it was read last: see [`outbox::service::reload`].
    config: Renewed<Config>,
    postgres: OnceLock<Postgres>,
    metrics: PrometheusHandle,
    /// Asked to end, and soon listening no more.
    stop: CancellationToken,
}

/// What a schema of this build is needed for.
pub(crate) struct Postgres {
    ingest: Ingest,
    readiness: Readiness,
    /// For what only reads: many readers never keep a job from being accepted.
    pool: Pool,
    /// For what changes something but accepts nothing: a commit that does not end keeps no reader waiting.
    changes: Pool,
}

/// Serves until `stop`, and then for as long as load balancers take to see it; then finishes the requests under way.
///
/// # Errors
/// The address cannot be listened on, or the database's schema is not the one of this build.
pub async fn run(
    config: Config,
    metrics: PrometheusHandle,
    stop: CancellationToken,
    hangups: Hangups,
) -> anyhow::Result<()> {
    let address = (config.server.app_host.as_str(), config.server.app_port);
    let listener = server::listen(address)
        .await
        .with_context(|| format!("cannot listen on APP_HOST {} and APP_PORT {}", address.0, address.1))?;
    info!(address = %listener.local_addr()?, "listening");

    let app = Arc::new(App { config: Renewed::new(config), postgres: OnceLock::new(), metrics, stop: stop.clone() });
    let renewed = Arc::clone(&app);
    hangups.apply(move |config: Config| config.check().map(|()| renewed.renew(config)));
    // While it waits for Postgres, too: a caller who is asked to try again knows more than one who is refused.
    let close = CancellationToken::new();
    let serving = async {
        server::serve(listener, router(Arc::clone(&app)), &app.config(), close.clone()).await;
        Ok(())
    };
    let closing = async {
        stop.cancelled().await;
        sleep(app.config().server.shutdown_delay()).await;
        close.cancel();
        Ok(())
    };
    tokio::try_join!(app.find_postgres(&stop), serving, closing)?;
    info!("stopped");
    Ok(())
}

impl App {
    /// Waits until Postgres is there, with the schema of this build.
    async fn find_postgres(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        // The same for both: what is read anew meanwhile knows nothing of what was found.
        let config = self.config();
        config.database.require_schema("outhook-api", stop).await?;
        // Then it has stopped waiting, and seen nothing.
        if !stop.is_cancelled() {
            self.postgres.get_or_init(|| Postgres::open(&config));
            info!("ready: accepting webhooks");
        }
        Ok(())
    }

    fn renew(&self, config: Config) {
        traces::renew(&config.traces);
        self.config.set(config);
    }

    fn config(&self) -> Arc<Config> {
        self.config.get()
    }

    /// 503 until it was found.
    fn postgres(&self) -> Result<&Postgres, ApiError> {
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

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/webhooks", post(routes::accept::accept))
        .route("/webhooks/{id}", get(routes::show::show).delete(routes::cancel::cancel))
        .route("/destinations/keys", put(routes::destination_keys::set).get(routes::destination_keys::list))
        .route("/destinations/keys/{id}", delete(routes::destination_keys::remove))
        .route("/health", get(routes::probes::health))
        .route("/ready", get(routes::probes::ready))
        .route("/metrics", get(routes::probes::metrics))
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(middleware::from_fn(request_id::identify))
        .with_state(app)
}
