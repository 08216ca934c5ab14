//! The api: accepts signed webhooks. A 202 is sent only after the commit that holds the job and its
//! outbox row.

mod authorized;
mod body;
mod config;
mod envelope;
mod error;
mod ingest;
mod json;
mod owned_job;
mod receipt;
mod request_id;
mod routes;
mod server;
mod signature;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::routing::{delete, get, post, put};
use axum::{Router, middleware};
use metrics_exporter_prometheus::PrometheusHandle;
use outbox::notify::Notifier;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use config::Config;

use crate::error::ApiError;
use crate::ingest::{Ingest, Pools};

/// A batch waits no longer for a connection to Postgres. Two waits in a row, a caller's own batch's and that
/// of the batch before, stay within 2 s; so do the two with the waits for locks that follow.
const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(900);

/// A batch waits no longer for what another transaction holds.
const LOCK_TIMEOUT: Duration = Duration::from_millis(800);

/// Nor does each of its jobs, tried by itself after the batch has waited in vain.
const SINGLE_LOCK_TIMEOUT: Duration = Duration::from_millis(50);

/// Connections for everything but accepting.
const OTHER_CONNECTIONS: u32 = 4;

/// What the handlers share.
pub(crate) struct App {
    config: Config,
    ingest: Ingest,
    /// For everything but accepting: many readers never keep a job from being accepted.
    pool: PgPool,
    metrics: PrometheusHandle,
}

/// Serves until `stop`, then finishes the requests under way.
///
/// # Errors
/// The address cannot be listened on, or the database's schema is not the one of this build.
pub async fn run(config: Config, metrics: PrometheusHandle, stop: CancellationToken) -> anyhow::Result<()> {
    // Before listening: until then a connection is refused, which says more than one that hangs.
    config.database.require_schema("outhook-api", &stop).await?;
    let address = (config.server.app_host.as_str(), config.server.app_port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on APP_HOST {} and APP_PORT {}", address.0, address.1))?;
    info!(address = %listener.local_addr()?, "ready: listening");

    let app = Arc::new(App::start(config, metrics));
    server::serve(listener, router(Arc::clone(&app)), &app.config, stop).await;
    info!("stopped");
    Ok(())
}

impl App {
    fn start(config: Config, metrics: PrometheusHandle) -> Self {
        let commits = config.accept.accept_concurrency.into();
        let accepting = |lock_timeout: Duration| {
            let lock_timeout = format!("{}ms", lock_timeout.as_millis());
            let settings = [("lock_timeout", lock_timeout.as_str())];
            config.database.pool_with("outhook-api accept", commits, ACQUIRE_TIMEOUT, &settings)
        };
        let pools = Pools { together: accepting(LOCK_TIMEOUT), singly: accepting(SINGLE_LOCK_TIMEOUT) };
        let notifier = Notifier::start(config.database.pool("outhook-api notify", 1, ACQUIRE_TIMEOUT));
        let waiting = config.server.max_connections as usize;
        Self {
            ingest: Ingest::start(pools, notifier, &config.accept, waiting),
            pool: config.database.pool("outhook-api", OTHER_CONNECTIONS, ACQUIRE_TIMEOUT),
            metrics,
            config,
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
