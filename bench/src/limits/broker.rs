//! RabbitMQ alone: confirmed publishes to a quorum queue like the real one, over one channel.

use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Parser;
use futures_util::future::try_join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use outbox::broker::task::Task;
use outbox::broker::topology::{BrokerConfig, within};
use tokio::time::timeout;
use uuid::Uuid;

use crate::limits::{CONFIRMS, TITLE};
use crate::phases::Bench;
use crate::report::{Report, Unit, per_second};

/// As many as the relay has in a batch by default.
const BATCH: u64 = 500;

/// Names apart from those of the services.
const NAME: &str = "bench.limit";

/// Persistent, as AMQP writes it.
const PERSISTENT: u8 = 2;

const BATCH_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn run(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    bench.progress.step("confirmed publishes");
    let broker = broker_config(bench.site.servers.rabbitmq_url());
    let connection = broker.connect("outhook-bench").await?;
    let channel = within("a channel", connection.create_channel()).await?;
    broker.declare(&channel).await?;
    within("confirm mode", channel.confirm_select(ConfirmSelectOptions::default())).await?;

    let (started, mut published) = (Instant::now(), 0);
    while started.elapsed() < bench.scale.limit {
        timeout(BATCH_TIMEOUT, publish_batch(&channel)).await??;
        published += BATCH;
    }
    let rate = per_second(published, started.elapsed());

    for queue in [NAME.to_owned(), format!("{NAME}.dead")] {
        within("the deletion", channel.queue_delete(queue.into(), QueueDeleteOptions::default())).await?;
    }
    within("the deletion", channel.exchange_delete(NAME.into(), ExchangeDeleteOptions::default())).await?;
    within("the close", connection.close(200, "bye".into())).await?;
    report.section(TITLE).add(CONFIRMS, "confirmed publishes, quorum queue, batches of 500", Unit::PerSecond, rate);
    Ok(())
}

async fn publish_batch(channel: &Channel) -> anyhow::Result<()> {
    let mut confirms = Vec::new();
    for number in 0..BATCH {
        let properties = BasicProperties::default()
            .with_message_id(Uuid::now_v7().to_string().into())
            .with_content_type("application/json".into())
            .with_delivery_mode(PERSISTENT);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let body = Task::new(Uuid::now_v7(), 0, number.cast_signed(), None).encode();
        confirms.push(channel.basic_publish(NAME.into(), NAME.into(), options, &body, properties).await?);
    }
    let confirmations = try_join_all(confirms).await?;
    ensure!(confirmations.iter().all(|it| matches!(it, Confirmation::Ack(_))), "RabbitMQ refused a message");
    Ok(())
}

#[derive(Parser)]
struct OnlyBroker {
    #[command(flatten)]
    broker: BrokerConfig,
}

fn broker_config(url: &str) -> BrokerConfig {
    let names = ["--rabbitmq-exchange", NAME, "--rabbitmq-queue", NAME, "--rabbitmq-routing-key", NAME];
    OnlyBroker::parse_from(["outhook-bench", "--rabbitmq-url", url].into_iter().chain(names)).broker
}
