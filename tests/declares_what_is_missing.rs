//! The relay declares what it publishes to once, and then only what is missing: where everything exists it needs no right
//! to, and a connection that is lost is made anew without waiting for all nodes of a cluster.

use harness::management::Management;
use harness::{Mode, PATIENCE, Servers, Stack, TcpProxy, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_without_the_right_to_declare_publishes_to_what_exists() {
    let servers = Servers::shared().await;
    let management = Management::of(servers);
    let user = management.create_user("declares_what_is_missing").await;
    let (proxy, through_proxy) = TcpProxy::before(&user.url(&servers.rabbitmq_url)).await;
    let mut stack = Stack::builder().relay_env("RABBITMQ_URL", &through_proxy).start().await;
    management.let_configure(&user, false).await;

    // The same relay connects anew, and then another one.
    proxy.set(Mode::Reset);
    wait_until("the relay to notice", PATIENCE, async || {
        stack.relays[0].counter("outhook_relay_reconnects_total").await > 0.0
    })
    .await;
    proxy.set(Mode::Forward);
    stack.post("{}", "").await;
    stack.wait_for_deliveries(1).await;
    let log = stack.relays[0].log();
    assert!(log.contains("connected to RabbitMQ") && !log.contains("ACCESS_REFUSED"), "it declared anew: {log}");
    stack.relays.remove(0).terminate().await;
    stack.start_relay().await;
    // The way to the queue is no matter of that right.
    stack.broker.unbind_queue().await;
    stack.post("{}", "").await;
    stack.wait_for_deliveries(2).await;

    // What is missing it cannot make, and says so.
    stack.broker.delete_queue().await;
    let said = "give the user its permissions";
    wait_until("the relay to say what it needs", PATIENCE, async || stack.relays[0].log().contains(said)).await;
    management.let_configure(&user, true).await;
    stack.post("{}", "").await;
    stack.wait_for_deliveries(3).await;
    stack.finish().await;
}
