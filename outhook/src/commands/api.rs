//! `outhook api`: accepts webhooks.

use outbox::service::{env, reload, shutdown, telemetry};
use outhook_api::Config;

#[tokio::main]
pub(crate) async fn run() {
    let config: Config = env::read();
    if let Err(error) = config.check() {
        env::refuse::<Config>(error);
    }
    telemetry::start_logging(&config.log);
    env::end::<Config>(serve(config).await)
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let (stop, hangups) = (shutdown::listen()?, reload::listen()?);
    let metrics = telemetry::start_metrics(&config.metrics, outhook_api::METRICS, None).await?;
    traces::start(&config.traces, "outhook-api")?;
    let ended = outhook_api::run(config, metrics, stop, hangups).await;
    traces::flush().await;
    ended
}
