//! `RABBITMQ_URL` in every form that it may have: what it says is what is done, or else is said.

use harness::certificates::Authority;
use harness::tls_broker::TlsBroker;
use harness::{Mode, PATIENCE, Program, Servers, Stack, StackBuilder, TcpProxy, wait_until};
use rustix::process::Signal;

/// What is between user and virtual host.
fn host_of(url: &str) -> &str {
    url.split(['@', '/']).nth(3).expect("the servers' URL names user and host")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ipv6_host_is_reached() {
    let url = &Servers::shared().await.rabbitmq_url;
    let proxy = TcpProxy::start_on_ipv6(host_of(url).parse().expect("it has an address")).await;
    let host = proxy.address().to_string();
    let stack = Stack::builder().env("RABBITMQ_URL", &url.replace(host_of(url), &host)).start().await;
    stack.post("{}", "").await;
    stack.wait_for_deliveries(1).await;
    for process in stack.relays.iter().chain(&stack.workers) {
        let log = process.log();
        assert!(log.contains(&format!("connected to RabbitMQ host=\"{host}\"")), "{log}");
        assert!(!log.contains('@') && !log.contains("guest"), "credentials: {log}");
    }
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_hosts_are_tried_in_turn() {
    let url = &Servers::shared().await.rabbitmq_url;
    let (one, two) = (TcpProxy::before(url).await.0, TcpProxy::before(url).await.0);
    let hosts = format!("127.0.0.1:9,{},{}", one.address(), two.address());
    let url = url.replace(host_of(url), &hosts);
    let stack = Stack::builder().env("RABBITMQ_URL", &url).start().await;
    for (delivered, (ends, stays)) in [(&one, &two), (&two, &one)].into_iter().enumerate() {
        stays.set(Mode::Forward);
        ends.set(Mode::Reset);
        stack.post("{}", "").await;
        stack.wait_for_deliveries(delivered + 1).await;
    }
    one.set(Mode::Forward);
    two.set(Mode::Forward);
    stack.finish().await;
}

/// Relay and worker with a certificate of this authority's, who trust it as well.
fn trusting(broker: &TlsBroker, stack: StackBuilder, authority: &Authority) -> StackBuilder {
    let identity = authority.issue("outhook.example");
    stack
        .env("RABBITMQ_URL", &broker.url())
        .env("RABBITMQ_CA_FILE", &broker.file("trusted.pem", authority.pem()))
        .env("RABBITMQ_CLIENT_CERT_FILE", &broker.file("client.pem", &identity.certificate))
        .env("RABBITMQ_CLIENT_KEY_FILE", &broker.file("client.key", &identity.key))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_an_authority_and_certificates_of_its_own() {
    let broker = TlsBroker::start().await;
    let stack = trusting(&broker, Stack::builder(), &broker.authority);
    let stack = stack.start_between(Servers::shared().await, &broker.servers).await;
    stack.post("{}", "").await;
    stack.wait_for_deliveries(1).await;
    stack.finish().await;
}

/// Starts both services as `stack` has them, and waits until they say this.
async fn assert_both_say(broker: &TlsBroker, stack: StackBuilder, expected: &str) {
    let mut stack = stack.relays(0).workers(0).start_between(Servers::shared().await, &broker.servers).await;
    for program in [Program::Relay, Program::Worker] {
        stack.spawn(program).await;
        let process = stack.processes(program).pop().expect("it was started just now");
        let says = format!("{} to say {expected:?}", process.name());
        wait_until(&says, PATIENCE, async || process.log().contains(expected)).await;
        process.signal(Signal::KILL);
    }
    stack.abandon().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_that_does_not_come_about_is_explained() {
    let broker = &TlsBroker::start().await;
    let builder = || trusting(broker, Stack::builder(), &broker.authority);
    let plain = broker.servers.rabbitmq_url.replace("amqp://", "amqps://");
    let expected = "where RABBITMQ_URL names a port without it, it says amqp";
    assert_both_say(broker, builder().env("RABBITMQ_URL", &plain), expected).await;
    let tls = broker.url().replace("amqps://", "amqp://");
    let without = || Stack::builder().env("RABBITMQ_URL", &tls);
    assert_both_say(broker, without(), "where that is one for TLS, it says amqps").await;
    let stack = trusting(broker, Stack::builder(), &Authority::new());
    assert_both_say(broker, stack, "RABBITMQ_CA_FILE names whom to trust").await;
    let name = broker.url().replace("localhost", "127.0.0.1");
    assert_both_say(broker, builder().env("RABBITMQ_URL", &name), "for another name than RABBITMQ_URL has").await;
    let ca_file = broker.file("only_ca.pem", broker.authority.pem());
    let stack = Stack::builder().env("RABBITMQ_URL", &broker.url()).env("RABBITMQ_CA_FILE", &ca_file);
    assert_both_say(broker, stack, "RABBITMQ_CLIENT_CERT_FILE and RABBITMQ_CLIENT_KEY_FILE name one").await;
}
