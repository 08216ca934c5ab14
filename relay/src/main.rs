//! `outhook-relay`: publishes the outbox to RabbitMQ.

use outbox::{env, shutdown, telemetry};
use outhook_relay::Config;

#[tokio::main]
async fn main() {
    let config: Config = env::read();
    telemetry::start_logging(&config.log);
    env::end::<Config>(run(config).await)
}

async fn run(config: Config) -> anyhow::Result<()> {
    let stop = shutdown::listen()?;
    telemetry::start_metrics(&config.metrics).await?;
    outhook_relay::run(config, stop).await
}
