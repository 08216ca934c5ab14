//! `outhook-api`: accepts webhooks.

use std::process::ExitCode;

use outbox::{env, shutdown, telemetry};
use outhook_api::Config;

#[tokio::main]
async fn main() -> ExitCode {
    let config: Config = env::read();
    telemetry::start_logging(&config.log);
    env::exit_code::<Config>(run(config).await)
}

async fn run(config: Config) -> anyhow::Result<()> {
    let stop = shutdown::listen()?;
    let metrics = telemetry::start_metrics(&config.metrics).await?;
    outhook_api::run(config, metrics, stop).await
}
