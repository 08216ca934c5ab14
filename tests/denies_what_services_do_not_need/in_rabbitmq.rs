//! What relay and worker may do with RabbitMQ: all of it and nothing else.

use clap::Parser;
use harness::Servers;
use harness::broker::Names;
use harness::management::{Management, Rights};
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ErrorKind, ExchangeKind};
use outbox::broker::topology::BrokerConfig;
use uuid::Uuid;

#[derive(Parser)]
struct OnlyBroker {
    #[command(flatten)]
    broker: BrokerConfig,
}

/// What a service is told, with the user of that name.
fn config(servers: &Servers, names: &Names, user: &str) -> BrokerConfig {
    let url = servers.rabbitmq_url.replacen("guest:guest", &format!("{user}:{user}"), 1);
    let (exchange, queue, key) = (&*names.exchange, &*names.queue, &*names.routing_key);
    let names =
        ["--rabbitmq-exchange", exchange, "--rabbitmq-queue", queue, "--rabbitmq-routing-key", key, "--rabbitmq-url"];
    OnlyBroker::parse_from(["test"].into_iter().chain(names).chain([&*url])).broker
}

fn names(prefix: &str) -> Names {
    let prefix = format!("{prefix}_{}", Uuid::new_v4().simple());
    Names {
        exchange: format!("{prefix}.exchange"),
        queue: format!("{prefix}.jobs"),
        routing_key: format!("{prefix}.key"),
    }
}

/// One thing that a client can ask of the broker.
#[derive(Clone, Debug)]
enum Ask {
    DeclareExchange(String),
    DeleteExchange(String),
    DeclareQueue(String),
    DeleteQueue(String),
    Purge(String),
    Bind(String, String),
    Publish(String),
    Consume(String),
    Get(String),
}

impl Ask {
    async fn of(&self, channel: &Channel) -> Result<(), lapin::Error> {
        let none = FieldTable::default;
        match self {
            Self::DeclareExchange(name) => {
                let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
                channel.exchange_declare(name.as_str().into(), ExchangeKind::Topic, options, none()).await
            }
            Self::DeleteExchange(name) => {
                channel.exchange_delete(name.as_str().into(), ExchangeDeleteOptions::default()).await
            }
            Self::DeclareQueue(name) => {
                let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
                channel.queue_declare(name.as_str().into(), options, none()).await.map(drop)
            }
            Self::DeleteQueue(name) => {
                channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await.map(drop)
            }
            Self::Purge(name) => {
                channel.queue_purge(name.as_str().into(), QueuePurgeOptions::default()).await.map(drop)
            }
            Self::Bind(queue, exchange) => {
                let (queue, exchange) = (queue.as_str().into(), exchange.as_str().into());
                channel.queue_bind(queue, exchange, "other".into(), QueueBindOptions::default(), none()).await
            }
            Self::Publish(exchange) => publish(channel, exchange, "nowhere").await,
            Self::Consume(queue) => {
                let options = BasicConsumeOptions::default();
                channel.basic_consume(queue.as_str().into(), "".into(), options, none()).await.map(drop)
            }
            Self::Get(queue) => channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.map(drop),
        }
    }
}

async fn publish(channel: &Channel, exchange: &str, key: &str) -> Result<(), lapin::Error> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    channel.basic_publish(exchange.into(), key.into(), options, b"{}", properties).await?.await.map(drop)
}

/// 403, `ACCESS_REFUSED`.
fn is_refusal(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error)
        if matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)))
}

/// Whether the broker does it, on a channel of its own: a refusal closes it.
async fn is_allowed(connection: &Connection, ask: &Ask) -> bool {
    let channel = connection.create_channel().await.expect("a channel opens");
    match ask.of(&channel).await {
        Ok(()) => true,
        Err(error) if is_refusal(&error) => false,
        Err(error) => panic!("{ask:?}: {error}"),
    }
}

/// All that can be asked with somebody else's exchange and queue, and with the broker's own.
fn foreign(exchange: &str, queue: &str) -> Vec<Ask> {
    let new = || format!("new {}", Uuid::new_v4());
    let (exchange, queue) = (|| exchange.to_owned(), || queue.to_owned());
    vec![
        Ask::DeclareExchange(new()),
        Ask::DeclareExchange(exchange()),
        Ask::DeleteExchange(exchange()),
        Ask::DeclareQueue(new()),
        Ask::DeclareQueue(queue()),
        Ask::DeleteQueue(queue()),
        Ask::Purge(queue()),
        Ask::Bind(queue(), exchange()),
        Ask::Publish(exchange()),
        Ask::Publish("amq.topic".to_owned()),
        Ask::Consume(queue()),
        Ask::Get(queue()),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_and_worker_reach_their_own_queue_and_no_other() {
    let servers = Servers::shared().await;
    let names = names("denies_other_queues");
    let relay = config(servers, &names, "outhook_relay").connect("test relay").await.expect("the relay logs in");
    let worker = config(servers, &names, "outhook_worker").connect("test worker").await.expect("the worker logs in");
    let admin = config(servers, &names, "guest").connect("test").await.expect("the administrator logs in");
    let channel = admin.create_channel().await.expect("a channel opens");
    config(servers, &names, "outhook_relay")
        .declare(&relay.create_channel().await.expect("a channel opens"))
        .await
        .expect("the relay declares what it needs");
    let (exchange, queue) = (format!("foreign {}", Uuid::new_v4()), format!("foreign {}", Uuid::new_v4()));
    Ask::DeclareExchange(exchange.clone()).of(&channel).await.expect("an administrator may");
    Ask::DeclareQueue(queue.clone()).of(&channel).await.expect("an administrator may");

    let dead = format!("{}.dead", names.queue);
    let own_exchange = || names.exchange.clone();
    let mut expected = Vec::new();
    for ask in foreign(&exchange, &queue) {
        expected.extend([(&relay, "relay", ask.clone(), false), (&worker, "worker", ask, false)]);
    }
    expected.extend([
        (&relay, "relay", Ask::Publish(own_exchange()), true),
        // The price of dead letters: see scripts/rabbitmq-users.
        (&relay, "relay", Ask::Publish(String::new()), true),
        (&relay, "relay", Ask::Consume(dead.clone()), false),
        (&relay, "relay", Ask::Bind(dead.clone(), own_exchange()), false),
        (&relay, "relay", Ask::Bind(queue.clone(), own_exchange()), false),
        (&relay, "relay", Ask::Bind(names.queue.clone(), exchange.clone()), false),
        (&worker, "worker", Ask::Publish(own_exchange()), false),
        (&worker, "worker", Ask::Publish(String::new()), false),
        (&worker, "worker", Ask::DeclareExchange(own_exchange()), false),
        (&worker, "worker", Ask::DeleteExchange(own_exchange()), false),
        (&worker, "worker", Ask::Bind(names.queue.clone(), own_exchange()), false),
        (&worker, "worker", Ask::DeclareQueue(dead.clone()), false),
        (&worker, "worker", Ask::DeleteQueue(dead.clone()), false),
        (&worker, "worker", Ask::Consume(dead.clone()), false),
        (&worker, "worker", Ask::Get(names.queue.clone()), true),
        (&worker, "worker", Ask::DeleteQueue(names.queue.clone()), true),
    ]);
    for (connection, who, ask, allowed) in expected {
        assert_eq!(is_allowed(connection, &ask).await, allowed, "{who}: {ask:?}");
    }
    for ask in [Ask::DeleteQueue(dead), Ask::DeleteQueue(queue), Ask::DeleteExchange(exchange)] {
        ask.of(&channel).await.expect("an administrator may");
    }
    Ask::DeleteExchange(names.exchange).of(&channel).await.expect("an administrator may");
}

/// What a relay asks of the broker, from a broker without a queue to a published message.
async fn relay(broker: &BrokerConfig) -> anyhow::Result<()> {
    let connection = broker.connect("test relay").await?;
    broker.queue_exists(&connection).await?;
    let channel = connection.create_channel().await?;
    broker.declare(&channel).await?;
    broker.ready_messages(&channel).await?;
    publish(&channel, broker.exchange(), broker.routing_key()).await?;
    Ok(())
}

/// What a worker asks of it.
async fn worker(broker: &BrokerConfig) -> anyhow::Result<()> {
    let connection = broker.connect("test worker").await?;
    let channel = connection.create_channel().await?;
    Ask::Consume(broker.queue().to_owned()).of(&channel).await?;
    broker.delete_queue("test worker").await?;
    Ok(())
}

fn was_refused(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<lapin::Error>().is_some_and(is_refusal)
            || matches!(cause.downcast_ref(), Some(outbox::broker::topology::BrokerError::Client(_, error)) if is_refusal(error))
    })
}

/// The names that one kind of right is about.
type ListOf = fn(&mut Rights) -> &mut Vec<String>;

/// A user's rights but for one, each in turn.
fn without_one(rights: &Rights) -> Vec<(String, Rights)> {
    let mut lesser = Vec::new();
    let kinds: [(&str, ListOf); 3] =
        [("configure", |it| &mut it.configure), ("write", |it| &mut it.write), ("read", |it| &mut it.read)];
    for (kind, list) in kinds {
        for index in 0..list(&mut rights.clone()).len() {
            let mut without = rights.clone();
            let right = list(&mut without).remove(index);
            lesser.push((format!("{kind} {right}"), without));
        }
    }
    lesser
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_and_worker_need_each_of_their_rights() {
    let servers = Servers::shared().await;
    let management = Management::of(servers);
    let names = names("denies_less_than_needed");
    let administrator = config(servers, &names, "guest");
    for (service, count) in [("relay", 8), ("worker", 2)] {
        let rights = management.rights_of(&format!("outhook_{service}")).await;
        let user = management.create_user(&format!("denies_less_{service}")).await;
        let broker = config(servers, &names, &format!("denies_less_{service}"));
        let does = async || {
            // What a queue's declaration needs is looked at only if there is none.
            administrator.delete_queue("test").await.expect("an administrator may");
            if service == "relay" {
                return relay(&broker).await;
            }
            relay(&administrator).await.expect("an administrator may");
            worker(&broker).await
        };
        management.grant(&user, &rights).await;
        does().await.unwrap_or_else(|error| panic!("{service} with all its rights: {error}"));
        let each = without_one(&rights);
        assert_eq!(each.len(), count, "{service}: {rights:?}");
        for (right, lesser) in each {
            management.grant(&user, &lesser).await;
            let refused = does().await.expect_err(&format!("{service} does not need {right}"));
            assert!(was_refused(&refused), "{service} without {right}: {refused}");
        }
    }
    let connection = administrator.connect("test").await.expect("the administrator logs in");
    let channel = connection.create_channel().await.expect("a channel opens");
    for queue in [names.queue.clone(), format!("{}.dead", names.queue)] {
        Ask::DeleteQueue(queue).of(&channel).await.expect("an administrator may");
    }
    Ask::DeleteExchange(names.exchange).of(&channel).await.expect("an administrator may");
}
