//! Two installations of Outhook that use the same broker and the same names: that is a mistake, and said; nothing is lost.

use harness::{PATIENCE, Stack, report, wait_until};

const WEBHOOKS: i32 = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_installations_with_the_same_names_deliver_all() {
    let one = Stack::builder().named("one_installation").start().await;
    let names = one.broker.names();
    let two = Stack::builder().named("another_installation").env("RABBITMQ_EXCHANGE", &names.exchange);
    let two = two.env("RABBITMQ_QUEUE", &names.queue).env("RABBITMQ_ROUTING_KEY", &names.routing_key).start().await;
    for stack in [&one, &two] {
        stack.enqueue(&stack.receiver_url(""), "{}", WEBHOOKS).await;
    }
    for stack in [&one, &two] {
        stack.wait_until_drained(PATIENCE).await;
        stack.assert_invariants().await;
    }
    let mut strays = 0.0;
    for worker in one.workers.iter().chain(&two.workers) {
        wait_until("a worker to say what is wrong", PATIENCE, async || {
            worker.log().contains("a message is of another installation of Outhook")
        })
        .await;
        strays += worker.counter("outhook_worker_strays_total").await;
    }
    report(&format!("two installations on one queue: {} delivered, {strays} times to the wrong one", WEBHOOKS * 2));
    two.abandon().await;
    one.finish().await;
}
