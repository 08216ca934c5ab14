//! RabbitMQ: the connection, the exchange and the queues.
//!
//! The relay declares them, the worker waits for them. So it is the relay that finds a wiped broker,
//! and it makes everything in flight due again *before* the queue exists anew.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::runtime::default_runtime;
use lapin::tcp::AMQPUriTcpExt;
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use tracing::{info, warn};

mod address;
mod error;
mod tls;

use address::{Address, host_and_port};
use error::CONNECTION;
pub use error::{BrokerError, within};
pub use tls::BrokerConfigError;
use tls::TlsConfig;

use crate::service::reload::Renewed;

/// No answer from the broker takes longer: a blocked connection gives neither answer nor error.
pub const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

/// Deliveries of one message before it is dead-lettered. A message comes back only when a worker dies
/// or lets go of it; its job is not lost with it, since the outbox row rings again.
const DELIVERY_LIMIT: i32 = 20;

/// Where RabbitMQ is and what its parts are called.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "RabbitMQ")]
#[allow(clippy::struct_field_names, reason = "named as their variables")]
pub struct BrokerConfig {
    /// Address of RabbitMQ, as in `amqp://user:password@host:5672/vhost` (amqps for TLS). Several hosts, separated by
    /// commas, are tried in turn; parameters are heartbeat (seconds, 5 unless set) and `auth_mechanism`.
    #[arg(long, env, hide_env_values = true, value_parser = Address::parse)]
    rabbitmq_url: Address,
    /// Durable topic exchange that messages are published to.
    #[arg(long, env, default_value = "webhooks", value_parser = name)]
    rabbitmq_exchange: String,
    /// Durable quorum queue that workers consume; `<queue>.dead` holds what they cannot read.
    #[arg(long, env, default_value = "webhook.jobs", value_parser = name)]
    rabbitmq_queue: String,
    /// Routing key of the messages.
    #[arg(long, env, default_value = "webhook.jobs", value_parser = name)]
    rabbitmq_routing_key: String,
    #[command(flatten)]
    tls: TlsConfig,
    /// What to connect by instead, of this and all its clones.
    #[arg(skip)]
    renewed: Arc<Renewed<Option<Self>>>,
}

/// AMQP's short strings hold 255 bytes; five are kept for `.dead`.
fn name(text: &str) -> Result<String, String> {
    if (1..=250).contains(&text.len()) { Ok(text.to_owned()) } else { Err("it must be 1 to 250 bytes long".to_owned()) }
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

    /// Whether there is another node to go to when one is lost or stands still.
    #[must_use]
    pub fn has_several_hosts(&self) -> bool {
        self.rabbitmq_url.len() > 1
    }

    /// Lets this and its clones begin with a host that is not the first: that is where relays begin, and so mostly where the
    /// queue's leader is.
    pub fn begin_elsewhere(&self) {
        self.rabbitmq_url.begin_elsewhere();
    }

    /// The virtual host of all these.
    #[must_use]
    pub fn virtual_host(&self) -> &str {
        self.rabbitmq_url.virtual_host()
    }

    /// How TLS is spoken to RabbitMQ's other interfaces: whom it is trusted by, and who the services say they are.
    ///
    /// # Errors
    /// Nobody is trusted, or the certificates are of no use.
    pub fn tls(&self) -> Result<rustls::ClientConfig, rustls::Error> {
        let renewed = self.renewed.get();
        renewed.as_ref().as_ref().unwrap_or(self).tls.client_config()
    }

    /// Checks what can only be said of several options together.
    ///
    /// # Errors
    /// Certificates that belong to nothing, or are of no use.
    pub fn check(&self) -> Result<(), BrokerConfigError> {
        self.tls.check(&self.rabbitmq_url)
    }

    /// Lets this and all its clones connect as `other` does, from the next connection on: by its address, with its
    /// certificates. What the exchange and the queue are called stays.
    pub fn renew(&self, other: Self) {
        self.renewed.set(Some(other));
    }

    /// Opens a connection, which RabbitMQ shows under `name`, to one of its hosts. Each has [`BROKER_TIMEOUT`].
    ///
    /// It does not recover by itself: on any error its owner drops it and opens another.
    ///
    /// # Errors
    /// None of the hosts can be reached in time, or the last one refuses.
    pub async fn connect(&self, name: &str) -> Result<Connection, BrokerError> {
        let renewed = self.renewed.get();
        let current = renewed.as_ref().as_ref().unwrap_or(self);
        let mut hosts_left = current.rabbitmq_url.len();
        loop {
            let uri = current.rabbitmq_url.next();
            let host = host_and_port(uri);
            hosts_left -= 1;
            match within(CONNECTION, Box::pin(current.connect_to(uri.clone(), name))).await {
                Ok(connection) => {
                    info!(host, "connected to RabbitMQ");
                    return Ok(connection);
                }
                Err(error) if hosts_left > 0 => warn!(host, %error, "cannot connect; trying the next host"),
                Err(error) => return Err(error),
            }
        }
    }

    async fn connect_to(&self, uri: AMQPUri, name: &str) -> Result<Connection, lapin::Error> {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connector = match uri.scheme {
            AMQPScheme::AMQP => None,
            AMQPScheme::AMQPS => Some(self.tls.connector().map_err(io::Error::other)?),
        };
        let connect = async move |uri: AMQPUri, runtime| {
            let plain = AMQPUri { scheme: AMQPScheme::AMQP, ..uri };
            let stream = plain.connect_async(&runtime).await?;
            match &connector {
                Some(connector) => Ok(stream.into_rustls(connector, &plain.authority.host).await?),
                None => Ok(stream),
            }
        };
        Connection::connector(uri, default_runtime()?, connect, properties).await
    }

    /// Whether the queue exists. Opens a channel of its own: the broker closes it when the answer is no.
    ///
    /// # Errors
    /// The broker cannot be asked.
    pub async fn queue_exists(&self, connection: &Connection) -> Result<bool, BrokerError> {
        let channel = within("a channel", connection.create_channel()).await?;
        exists(look_for_queue(&channel, self.queue()).await)
    }

    /// Whether the exchange and both queues exist, whatever their properties. Needs no rights, and waits for no other
    /// node of a cluster.
    ///
    /// # Errors
    /// The broker cannot be asked.
    pub async fn is_declared(&self, connection: &Connection) -> Result<bool, BrokerError> {
        let channel = within("a channel", connection.create_channel()).await?;
        let looks = async {
            let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
            let exchange = self.exchange().into();
            let exchange = channel.exchange_declare(exchange, ExchangeKind::Topic, passive, FieldTable::default());
            within("the exchange", exchange).await?;
            look_for_queue(&channel, &self.dead_letters()).await?;
            look_for_queue(&channel, self.queue()).await
        };
        exists(looks.await)
    }

    /// How many messages wait in the queue for a worker.
    ///
    /// # Errors
    /// The broker cannot be asked, or the queue does not exist; then the channel is closed.
    pub async fn ready_messages(&self, channel: &Channel) -> Result<u32, BrokerError> {
        look_for_queue(channel, self.queue()).await
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
        let dead = self.dead_letters();
        declare_queue(channel, &dead, quorum()).await?;
        let mut arguments = quorum();
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
        arguments.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString(dead.into()));
        declare_queue(channel, self.queue(), arguments).await?;
        self.bind(channel).await
    }

    /// Makes the exchange pass messages on to the queue.
    ///
    /// # Errors
    /// The broker cannot be asked, or one of them does not exist.
    pub async fn bind(&self, channel: &Channel) -> Result<(), BrokerError> {
        let bound = channel.queue_bind(
            self.queue().into(),
            self.exchange().into(),
            self.routing_key().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        within("the binding", bound).await
    }

    fn dead_letters(&self) -> String {
        format!("{}.dead", self.queue())
    }
}

/// Asks for a queue. Returns its length.
async fn look_for_queue(channel: &Channel, name: &str) -> Result<u32, BrokerError> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(name.into(), passive, FieldTable::default());
    Ok(within("the queue's state", queue).await?.message_count())
}

fn exists(looked: Result<u32, BrokerError>) -> Result<bool, BrokerError> {
    match looked {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
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
