//! `outhook-worker`: delivers webhooks.

use outbox::{env, shutdown, telemetry};
use outhook_worker::Config;

#[tokio::main]
async fn main() {
    let config: Config = env::read();
    if let Err(error) = config.check() {
        env::refuse::<Config>(error);
    }
    telemetry::start_logging(&config.log);
    env::end::<Config>(run(config).await)
}

async fn run(config: Config) -> anyhow::Result<()> {
    // For the HTTP client, which brings none of its own.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let stop = shutdown::listen()?;
    telemetry::start_metrics(&config.metrics).await?;
    outhook_worker::run(config, stop).await
}
