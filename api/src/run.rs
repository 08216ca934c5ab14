//! The api from its start to its end.

use std::sync::Arc;

use anyhow::Context;
use metrics_exporter_prometheus::PrometheusHandle;
use outbox::service::reload::Hangups;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::app::App;
use crate::config::Config;
use crate::routes::router;
use crate::server;

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

    let app = Arc::new(App::new(config, metrics, stop.clone()));
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
    tokio::try_join!(app.find_postgres(), serving, closing)?;
    info!("stopped");
    Ok(())
}
