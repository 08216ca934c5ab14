//! RabbitMQ: the connection, the exchange and the queues.
//!
//! The relay declares them, the worker waits for them. So it is the relay that finds a wiped broker,
//! and it makes everything in flight due again *before* the queue exists anew.

use std::time::Duration;

use clap::Args;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind, ExchangeKind};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;

/// No answer from the broker takes longer: a blocked connection gives neither answer nor error.
pub const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

/// Seconds between heartbeats; two missed ones end a half-open connection.
const HEARTBEAT_SEC: u16 = 5;

/// Deliveries of one message before it is dead-lettered. A message comes back only when a worker dies
/// or lets go of it; its job is not lost with it, since the outbox row rings again.
const DELIVERY_LIMIT: i32 = 20;

/// Where RabbitMQ is and what its parts are called.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "RabbitMQ")]
#[allow(clippy::struct_field_names, reason = "named as their variables")]
pub struct BrokerConfig {
    /// Address of RabbitMQ, as in `amqp://user:password@host:5672/vhost` (amqps for TLS).
    #[arg(long, env, hide_env_values = true, value_parser = amqp_url)]
    rabbitmq_url: SecretString,
    /// Durable topic exchange that messages are published to.
    #[arg(long, env, default_value = "webhooks", value_parser = name)]
    rabbitmq_exchange: String,
    /// Durable quorum queue that workers consume; `<queue>.dead` holds what they cannot read.
    #[arg(long, env, default_value = "webhook.jobs", value_parser = name)]
    rabbitmq_queue: String,
    /// Routing key of the messages.
    #[arg(long, env, default_value = "webhook.jobs", value_parser = name)]
    rabbitmq_routing_key: String,
}

fn amqp_url(text: &str) -> Result<SecretString, String> {
    text.parse::<AMQPUri>()
        .map(|_| SecretString::from(text))
        .map_err(|_| "it is not an amqp or amqps URL like amqp://user:password@host:5672/vhost".to_owned())
}

/// AMQP's short strings hold 255 bytes; five are kept for `.dead`.
fn name(text: &str) -> Result<String, String> {
    if (1..=250).contains(&text.len()) { Ok(text.to_owned()) } else { Err("it must be 1 to 250 bytes long".to_owned()) }
}

/// Why the broker cannot be worked with now.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// RabbitMQ or its client says no.
    #[error("RabbitMQ: {0}")]
    Client(#[from] lapin::Error),
    /// No answer within [`BROKER_TIMEOUT`].
    #[error("RabbitMQ did not answer {0} in time")]
    Timeout(&'static str),
}

/// Waits for the broker's answer, but no longer than [`BROKER_TIMEOUT`].
///
/// # Errors
/// The answer is an error, or there is none in time.
pub async fn within<T>(
    what: &'static str,
    answer: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, BrokerError> {
    Ok(timeout(BROKER_TIMEOUT, answer).await.map_err(|_| BrokerError::Timeout(what))??)
}

impl BrokerConfig {
    /// The exchange to publish to.
    #[must_use]
    pub fn exchange(&self) -> &str {
        &self.rabbitmq_exchange
    }

    /// The queue to consume.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.rabbitmq_queue
    }

    /// The routing key to publish with.
    #[must_use]
    pub fn routing_key(&self) -> &str {
        &self.rabbitmq_routing_key
    }

    /// Opens a connection, which RabbitMQ shows under `name`.
    ///
    /// It does not recover by itself: on any error its owner drops it and opens another.
    ///
    /// # Errors
    /// RabbitMQ cannot be reached in time or refuses.
    pub async fn connect(&self, name: &str) -> Result<Connection, BrokerError> {
        let mut uri: AMQPUri = self.rabbitmq_url.expose_secret().parse().expect("checked when it was read");
        uri.query.heartbeat = Some(HEARTBEAT_SEC);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        within("the connection", Connection::connect_uri(uri, properties)).await
    }

    /// Whether the queue exists. Opens a channel of its own: the broker closes it when the answer is no.
    ///
    /// # Errors
    /// The broker cannot be asked.
    pub async fn queue_exists(&self, connection: &Connection) -> Result<bool, BrokerError> {
        let channel = within("a channel", connection.create_channel()).await?;
        match self.ready_messages(&channel).await {
            Ok(_) => Ok(true),
            Err(BrokerError::Client(error)) if is_not_found(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How many messages wait in the queue for a worker.
    ///
    /// # Errors
    /// The broker cannot be asked, or the queue does not exist; then the channel is closed.
    pub async fn ready_messages(&self, channel: &Channel) -> Result<u32, BrokerError> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare(self.queue().into(), passive, FieldTable::default());
        Ok(within("the queue's state", queue).await?.message_count())
    }

    /// Deletes the queue, with whatever is in it. Nothing is lost: the relay finds it missing, makes all that
    /// was published due again, and declares it anew.
    ///
    /// # Errors
    /// RabbitMQ cannot be reached, or refuses.
    pub async fn delete_queue(&self, name: &str) -> Result<(), BrokerError> {
        let connection = self.connect(name).await?;
        let channel = within("a channel", connection.create_channel()).await?;
        let deleted = channel.queue_delete(self.queue().into(), QueueDeleteOptions::default());
        within("the deletion", deleted).await?;
        within("the close", connection.close(200, "bye".into())).await
    }

    /// Declares the exchange, the queue, its dead-letter queue and the binding.
    ///
    /// # Errors
    /// The broker cannot be asked, or something of these names exists with other properties.
    pub async fn declare(&self, channel: &Channel) -> Result<(), BrokerError> {
        let exchange = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared =
            channel.exchange_declare(self.exchange().into(), ExchangeKind::Topic, exchange, FieldTable::default());
        within("the exchange", declared).await?;

        let dead = format!("{}.dead", self.queue());
        declare_queue(channel, &dead, quorum()).await?;
        let mut arguments = quorum();
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
        arguments.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString(dead.into()));
        declare_queue(channel, self.queue(), arguments).await?;

        let bound = channel.queue_bind(
            self.queue().into(),
            self.exchange().into(),
            self.routing_key().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        within("the binding", bound).await
    }
}

/// Quorum queues are written to disk before they confirm; classic ones are not.
fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments
}

async fn declare_queue(channel: &Channel, name: &str, arguments: FieldTable) -> Result<(), BrokerError> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    within("the queue", channel.queue_declare(name.into(), options, arguments)).await?;
    Ok(())
}

/// Whether RabbitMQ failed at what it was asked for: 541, `INTERNAL_ERROR`.
#[must_use]
pub fn is_internal_error(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error)
        if matches!(error.kind(), AMQPErrorKind::Hard(AMQPHardError::INTERNALERROR)))
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error)
        if matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND)))
}
