//! `outhook-api`: accepts webhooks.

use outbox::{env, shutdown, telemetry};
use outhook_api::Config;

#[tokio::main]
async fn main() {
    let config: Config = env::read();
    telemetry::start_logging(&config.log);
    env::end::<Config>(run(config).await)
}

async fn run(config: Config) -> anyhow::Result<()> {
    let stop = shutdown::listen()?;
    let metrics = telemetry::start_metrics(&config.metrics).await?;
    outhook_api::run(config, metrics, stop).await
}
