//! `outhook worker`: delivers webhooks.

use outbox::service::telemetry::Readiness;
use outbox::service::{env, reload, shutdown, telemetry};
use outhook_worker::Config;

#[tokio::main]
pub(crate) async fn run() {
    let config: Config = env::read();
    if let Err(error) = config.check() {
        env::refuse::<Config>(error);
    }
    telemetry::start_logging(&config.log);
    env::end::<Config>(deliver(config).await)
}

async fn deliver(config: Config) -> anyhow::Result<()> {
    // For the HTTP client, which brings none of its own.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (stop, hangups) = (shutdown::listen()?, reload::listen()?);
    let readiness = Readiness::new(stop.clone(), None);
    telemetry::start_metrics(&config.metrics, outhook_worker::METRICS, Some(readiness.clone())).await?;
    traces::start(&config.traces, "outhook-worker")?;
    let ended = outhook_worker::run(config, stop, hangups, readiness).await;
    traces::flush().await;
    ended
}
