//! A client that only publishes, one message after the other, and waits for each confirm as long as it takes: how soon it
//! goes on after a fault is what a cluster allows.

use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Between two messages.
const SPACING: Duration = Duration::from_millis(100);

/// It publishes to a quorum queue of its own, which nobody consumes.
pub struct PlainPublisher {
    stop: CancellationToken,
    confirmed: JoinHandle<Vec<Instant>>,
}

impl PlainPublisher {
    /// Declares the queue where the first URL leads, which makes that node its leader's, and publishes by the second.
    pub async fn start(leader: &str, url: &str, queue: String) -> Self {
        let (_connection, channel) = open(leader).await;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.as_str().into(), options, arguments).await.expect("the queue comes");
        let (connection, channel) = open(url).await;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let confirmed = tokio::spawn(async move {
            let (_connection, mut confirmed) = (connection, Vec::new());
            while !stopped.is_cancelled() && publish(&channel, &queue).await {
                confirmed.push(Instant::now());
                sleep(SPACING).await;
            }
            confirmed
        });
        Self { stop, confirmed }
    }

    /// Ends it. Returns the longest time without a confirm.
    pub async fn longest_silence(self) -> Duration {
        self.stop.cancel();
        let confirmed = self.confirmed.await.expect("it did not panic");
        confirmed.windows(2).map(|pair| pair[1] - pair[0]).max().expect("it published")
    }
}

async fn open(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("the broker takes it");
    let channel = connection.create_channel().await.expect("a channel opens");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirm mode");
    (connection, channel)
}

/// Whether it was confirmed.
async fn publish(channel: &Channel, queue: &str) -> bool {
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default().with_delivery_mode(2));
    let published = async { channel.basic_publish("".into(), queue.into(), options, b"{}", properties).await?.await };
    published.await.is_ok_and(|confirmation| confirmation.is_ack())
}
