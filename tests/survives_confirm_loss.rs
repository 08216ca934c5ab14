//! The confirm of a message may get lost: the relay gives up waiting, closes the connection and publishes
//! the same message id once more; the claim refuses the second message.

use harness::tcp_proxy::Direction;
use harness::{Mode, PATIENCE, Servers, Stack, TcpProxy, report, wait_until};

const WEBHOOKS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_whose_confirms_are_lost_are_published_again_under_their_ids() {
    let (proxy, through_proxy) = TcpProxy::before(&Servers::shared().await.rabbitmq_url).await;
    let mut stack =
        Stack::builder("confirms_are_lost").workers(0).relay_env("RABBITMQ_URL", &through_proxy).start().await;
    let wire = stack.listen().await;
    let connections = proxy.connections();
    proxy.set(Mode::Drop(Direction::ToClient));
    for _ in 0..WEBHOOKS {
        stack.post("{}", "").await;
    }
    wait_until("a confirm to be given up", PATIENCE, async || {
        stack.relays[0].counter("outhook_relay_unconfirmed_total").await > 0.0
    })
    .await;
    assert_eq!(stack.count("SELECT count(*) FROM harness.publications").await, 0, "recorded without a confirm");
    wait_until("the connection to be closed", PATIENCE, async || proxy.ended_connections() >= connections).await;
    let lost = wire.messages();

    proxy.set(Mode::Forward);
    wire.wait_for(lost + WEBHOOKS, PATIENCE).await;
    assert!(proxy.connections() > connections, "nobody connected anew");
    assert_eq!(wire.duplicates(), lost, "messages without a confirm came again under other ids");
    stack.start_worker().await;
    stack.wait_until_drained(PATIENCE).await;

    report(&format!("confirms lost: {lost} of {WEBHOOKS} messages published twice, each delivered once"));
    assert!(lost > 0, "no confirm was lost");
    assert_eq!(stack.receiver.received().len(), WEBHOOKS);
    stack.finish().await;
}
