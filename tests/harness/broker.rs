//! The tests' own way to the broker: looks into queues, publishes by hand, listens on the wire.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use tokio::sync::{Mutex, watch};

/// The names that one stack uses.
#[derive(Clone, Debug)]
pub struct Names {
    /// The exchange.
    pub exchange: String,
    /// The queue; that of dead letters is `<queue>.dead`.
    pub queue: String,
    /// The routing key.
    pub routing_key: String,
}

/// The test's own connection. It is opened anew when the broker was away.
pub struct Broker {
    url: String,
    connection: Mutex<Connection>,
    names: Names,
}

impl Broker {
    /// Connects.
    pub async fn connect(url: &str, names: Names) -> Self {
        Self { url: url.to_owned(), connection: Mutex::new(connect(url).await), names }
    }

    /// What the test's exchange, queue and key are called.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// A channel. Each use has its own: an error closes it.
    async fn channel(&self) -> Channel {
        let mut connection = self.connection.lock().await;
        if let Ok(channel) = connection.create_channel().await {
            return channel;
        }
        *connection = connect(&self.url).await;
        connection.create_channel().await.expect("a channel opens")
    }

    /// Messages in the queue that no worker holds.
    pub async fn ready(&self) -> u32 {
        self.count(&self.names.queue).await
    }

    /// Consumers of the queue.
    pub async fn consumers(&self) -> u32 {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.names.queue.as_str().into();
        let queue = self.channel().await.queue_declare(queue, passive, FieldTable::default()).await;
        queue.expect("the queue exists").consumer_count()
    }

    /// Whether the queue exists.
    pub async fn has_queue(&self) -> bool {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.names.queue.as_str().into();
        self.channel().await.queue_declare(queue, passive, FieldTable::default()).await.is_ok()
    }

    /// Messages in the queue of dead letters.
    pub async fn dead(&self) -> u32 {
        self.count(&format!("{}.dead", self.names.queue)).await
    }

    async fn count(&self, queue: &str) -> u32 {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = self.channel().await.queue_declare(queue.into(), passive, FieldTable::default()).await;
        declared.expect("the queue exists").message_count()
    }

    /// Publishes a message by hand, as the relay would, and waits for the confirm.
    pub async fn publish(&self, body: &[u8]) {
        let is_confirmed = self.try_publish(body).await.expect("published and confirmed");
        assert!(is_confirmed, "the broker refused the message");
    }

    /// The same where the broker may be broken. Returns whether it took the message; also what no queue takes is taken.
    ///
    /// # Errors
    /// It did not say.
    pub async fn try_publish(&self, body: &[u8]) -> Result<bool, lapin::Error> {
        let channel = self.channel().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let (exchange, key) = (self.names.exchange.as_str().into(), self.names.routing_key.as_str().into());
        let properties = BasicProperties::default().with_delivery_mode(2);
        let confirm = channel.basic_publish(exchange, key, BasicPublishOptions::default(), body, properties).await;
        Ok(confirm?.await?.is_ack())
    }

    /// Whether a relay has declared the exchange.
    pub async fn has_exchange(&self) -> bool {
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let exchange = self.names.exchange.as_str().into();
        self.channel()
            .await
            .exchange_declare(exchange, ExchangeKind::Topic, passive, FieldTable::default())
            .await
            .is_ok()
    }

    /// Starts to listen to all that is published from now on.
    pub async fn listen(&self) -> Wire {
        let wire = Wire::default();
        self.listen_again(&wire).await;
        wire
    }

    /// The same with what was counted before: a broker that was away has forgotten its listeners.
    pub async fn listen_again(&self, wire: &Wire) {
        let channel = self.channel().await;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.expect("a queue");
        let bound = channel.queue_bind(
            queue.name().as_str().into(),
            self.names.exchange.as_str().into(),
            self.names.routing_key.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bound.await.expect("the exchange exists");
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(queue.name().as_str().into(), "".into(), options, FieldTable::default());
        tokio::spawn(wire.clone().count(consumer.await.expect("the queue can be consumed"), channel));
    }

    /// Deletes the queue with all that is in it.
    pub async fn delete_queue(&self) {
        let queue = self.names.queue.as_str().into();
        let deleted = self.channel().await.queue_delete(queue, QueueDeleteOptions::default()).await;
        deleted.expect("the queue goes");
    }

    /// Takes all messages out of the queue.
    pub async fn purge(&self) {
        let queue = self.names.queue.as_str().into();
        let purged = self.channel().await.queue_purge(queue, QueuePurgeOptions::default()).await;
        purged.expect("the queue can be emptied");
    }

    /// Deletes the queue and declares it anew at once, as the relay would: RabbitMQ 3.10 and 3.12 tell its consumers
    /// nothing, and hand them nothing more.
    pub async fn replace_queue(&self) {
        let (channel, names) = (self.channel().await, &self.names);
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text("quorum"));
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(20));
        arguments.insert("x-dead-letter-exchange".into(), text(""));
        arguments.insert("x-dead-letter-routing-key".into(), text(&format!("{}.dead", names.queue)));
        let queue = || names.queue.as_str().into();
        channel.queue_delete(queue(), QueueDeleteOptions::default()).await.expect("the queue goes");
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue(), durable, arguments).await.expect("the queue comes");
        let (exchange, key) = (names.exchange.as_str().into(), names.routing_key.as_str().into());
        let bound = channel.queue_bind(queue(), exchange, key, QueueBindOptions::default(), FieldTable::default());
        bound.await.expect("the binding comes");
    }

    /// Removes the way from the exchange to the queue.
    pub async fn unbind_queue(&self) {
        let names = &self.names;
        let (queue, exchange) = (names.queue.as_str().into(), names.exchange.as_str().into());
        let key = names.routing_key.as_str().into();
        let unbound = self.channel().await.queue_unbind(queue, exchange, key, FieldTable::default()).await;
        unbound.expect("the binding goes");
    }

    /// Removes the stack's queues and exchange.
    pub async fn delete(self) {
        let channel = self.channel().await;
        for queue in [self.names.queue.clone(), format!("{}.dead", self.names.queue)] {
            channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.expect("a queue goes");
        }
        let exchange = self.names.exchange.as_str().into();
        channel.exchange_delete(exchange, ExchangeDeleteOptions::default()).await.expect("an exchange goes");
    }
}

async fn connect(url: &str) -> Connection {
    let connecting = Connection::connect(url, ConnectionProperties::default());
    let connecting = tokio::time::timeout(Duration::from_secs(10), connecting).await;
    connecting.expect("RabbitMQ answers in time").expect("RabbitMQ takes connections")
}

/// What was published while somebody listened.
#[derive(Clone, Default)]
pub struct Wire(Arc<watch::Sender<HashMap<String, usize>>>);

impl Wire {
    /// Messages so far.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.0.borrow().values().sum()
    }

    /// Messages whose id was there before.
    #[must_use]
    pub fn duplicates(&self) -> usize {
        self.0.borrow().values().map(|count| count - 1).sum()
    }

    /// Returns as soon as so many messages have passed.
    pub async fn wait_for(&self, messages: usize, timeout: Duration) {
        let mut seen = self.0.subscribe();
        let waiting = seen.wait_for(|seen| seen.values().sum::<usize>() >= messages);
        let waited = tokio::time::timeout(timeout, waiting).await;
        assert!(waited.is_ok(), "waited in vain for {messages} messages; there are {}", self.messages());
    }

    /// The channel is kept with its consumer: dropped, it would close.
    async fn count(self, mut consumer: Consumer, _channel: Channel) {
        while let Some(Ok(delivery)) = consumer.next().await {
            let id = delivery.properties.message_id().as_ref().map_or_else(String::new, ToString::to_string);
            self.0.send_modify(|seen| *seen.entry(id).or_default() += 1);
        }
    }
}
