//! What a service says of a broker that it cannot work with: what is wrong, once, and what to do about it.

use harness::management::Management;
use harness::processes::Process;
use harness::{PATIENCE, Program, Servers, Stack, wait_until};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};

/// A stack without relays and workers: its database and its names.
async fn stack() -> Stack {
    Stack::builder().relays(0).workers(0).start().await
}

async fn start(stack: &Stack, program: Program, rabbitmq_url: &str) -> Process {
    let role = if program == Program::Relay { "relay" } else { "worker" };
    let names = stack.broker.names();
    let environment = [
        ("DATABASE_URL", stack.url_of(role)),
        ("RABBITMQ_URL", rabbitmq_url.to_owned()),
        ("RABBITMQ_EXCHANGE", names.exchange.clone()),
        ("RABBITMQ_QUEUE", names.queue.clone()),
        ("RABBITMQ_ROUTING_KEY", names.routing_key.clone()),
    ];
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Process::start(format!("{}-{role}", names.queue), program, &environment).await
}

/// Waits until the service says this, and looks whether anything that it says stands there twice.
async fn assert_says(process: &Process, expected: &str) {
    let case = format!("{} to say {expected:?}", process.name());
    wait_until(&case, PATIENCE, async || process.log().contains(expected)).await;
    for line in process.log().lines().filter(|line| line.contains(" WARN ")) {
        let (_, message) = line.split_once(" WARN ").expect("it has one");
        let parts: Vec<&str> = message.split(": ").collect();
        for (position, part) in parts.iter().enumerate() {
            assert!(!parts[position + 1..].iter().any(|other| other.contains(part)), "{part:?} twice: {line}");
        }
        assert!(!line.contains("AMQP") && !line.contains("_REFUSED") && !line.contains("NOT_"), "codes: {line}");
    }
}

/// Both services, with this as their broker.
async fn assert_both_say(rabbitmq_url: &str, expected: &str) {
    let stack = stack().await;
    for program in [Program::Relay, Program::Worker] {
        assert_says(&start(&stack, program, rabbitmq_url).await, expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_virtual_host_that_does_not_exist() {
    let url = &Servers::shared().await.rabbitmq_url;
    let (server, _) = url.rsplit_once('/').expect("the servers' URL names a virtual host");
    let expected = "RABBITMQ_URL must end with a virtual host that exists and that the user may use; write %2f for the \
                    default one";
    // The slash alone is a virtual host without a name.
    assert_both_say(&format!("{server}/"), expected).await;
    assert_both_say(&format!("{server}/nowhere"), &format!("vhost nowhere not found: {expected}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_not_come_in() {
    let url = Servers::shared().await.rabbitmq_url.replacen("guest:guest", "guest:hunter2", 1);
    assert_both_say(&url, "see user and password in RABBITMQ_URL").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_listens() {
    let expected = "RabbitMQ: Connection refused (os error 111): see that it runs, where RABBITMQ_URL says";
    assert_both_say("amqp://guest:guest@127.0.0.1:9/%2f", expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_permissions() {
    let servers = Servers::shared().await;
    let management = Management::of(servers);
    let stack = stack().await;
    let user = management.create_user("without_permissions").await;
    management.let_configure(&user, false).await;
    let relay = start(&stack, Program::Relay, &user.url(&servers.rabbitmq_url)).await;
    assert_says(&relay, "give the user its permissions, as scripts/rabbitmq-users has them").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_nobody_has_declared() {
    let stack = stack().await;
    let worker = start(&stack, Program::Worker, &Servers::shared().await.rabbitmq_url).await;
    let queue = &stack.broker.names().queue;
    assert_says(&worker, &format!("no queue '{queue}' in vhost '/': see that a relay runs, which declares it")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_of_another_kind() {
    let stack = stack().await;
    let url = &Servers::shared().await.rabbitmq_url;
    let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("RabbitMQ is there");
    let channel = connection.create_channel().await.expect("a channel opens");
    let queue = stack.broker.names().queue.as_str();
    let classic = channel.queue_declare(queue.into(), QueueDeclareOptions::default(), FieldTable::default());
    classic.await.expect("it is declared");
    let relay = start(&stack, Program::Relay, url).await;
    assert_says(&relay, "delete it, or set RABBITMQ_EXCHANGE or RABBITMQ_QUEUE to another name").await;
}
