//! `outhook relay`: publishes the outbox to RabbitMQ.

use std::time::Duration;

use outbox::service::telemetry::Readiness;
use outbox::service::{env, reload, shutdown, telemetry};
use outhook_relay::Config;

/// A relay that has not looked at the outbox for longer is not ready. Some three of the longest turns on servers that
/// answer; an idle one looks each second.
const LONGEST_TURN: Duration = Duration::from_secs(15);

#[tokio::main]
pub(crate) async fn run() {
    let config: Config = env::read();
    if let Err(error) = config.check() {
        env::refuse::<Config>(error);
    }
    telemetry::start_logging(&config.log);
    env::end::<Config>(publish(config).await)
}

async fn publish(config: Config) -> anyhow::Result<()> {
    let (stop, hangups) = (shutdown::listen()?, reload::listen()?);
    let renewed = config.clone();
    hangups.apply(move |config: Config| renewed.renew(config));
    let readiness = Readiness::new(stop.clone(), Some(LONGEST_TURN));
    telemetry::start_metrics(&config.metrics, outhook_relay::METRICS, Some(readiness.clone())).await?;
    traces::start(&config.traces, "outhook-relay")?;
    let ended = outhook_relay::run(config, stop, readiness).await;
    traces::flush().await;
    ended
}
