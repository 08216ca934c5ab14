//! Three RabbitMQ nodes: one of them dies, stands still, or is restarted, and webhooks flow on as soon as the others let them.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use harness::cluster::Cluster;
use harness::load::{Flow, Outcome};
use harness::management::Management;
use harness::plain_publisher::PlainPublisher;
use harness::servers::Server;
use harness::{PATIENCE, Servers, Stack, report, wait_until};
use tokio::time::sleep;

/// Webhooks a second.
const RATE: u32 = 20;

/// How long all is well before a fault, and after it.
const CALM: Duration = Duration::from_secs(3);

/// The node that the test asks, and does not break.
const WATCHED: usize = 2;

/// Longer than a node takes to be missed by the others' queues (10 s or so), and shorter than Erlang takes to give it up
/// (45 s), after which a cluster has two halves for a while.
const STANDSTILL: Duration = Duration::from_secs(25);

/// How much later than a plain client the services may be: a try to connect, and a busy machine.
const BEHIND: Duration = Duration::from_secs(11);

/// A relay, whose first connection declares the queue, and a worker, which begins with another node. Returns the leader's as
/// well.
async fn start(cluster: &Cluster) -> (Stack, usize) {
    let stack = Stack::builder().workers(0).env("RABBITMQ_URL", &cluster.url_from(0));
    let mut stack = stack.start_between(Servers::shared().await, &cluster.nodes[WATCHED]).await;
    let place = cluster.wait_for_place(&stack.broker.names().queue, WATCHED, 3).await;
    let leader = place.leader.expect("it was waited for");
    assert_ne!(leader, WATCHED, "nothing was declared there");
    stack.set_worker_env("RABBITMQ_URL", &cluster.url_from(leader));
    stack.start_worker().await;
    (stack, leader)
}

fn flow(stack: &Stack) -> Flow {
    Flow::start(&stack.client, vec![stack.receiver_url("")], RATE)
}

/// The longest time without a delivery.
fn longest_silence(stack: &Stack) -> Duration {
    let received = stack.receiver.received();
    let silences = received.windows(2).map(|pair| (pair[1].at - pair[0].at).unsigned_abs());
    silences.max().expect("something was delivered")
}

/// What was accepted, lost and delivered twice, in words. Nothing may be lost.
async fn count(stack: &Stack, outcome: Outcome) -> String {
    stack.wait_until_drained(2 * PATIENCE).await;
    let received = stack.receiver.received();
    let delivered: HashSet<_> = received.iter().filter_map(|it| it.job_id.as_ref()).collect();
    let accepted = outcome.accepted + outcome.known;
    let (lost, twice) = (accepted - delivered.len(), received.len() - delivered.len());
    assert_eq!(lost, 0, "of {accepted}");
    format!("{accepted} accepted, {lost} lost, {twice} delivered twice")
}

async fn the_leader_stands_still(standstill: Duration) {
    let cluster = Cluster::start().await;
    let (stack, leader) = start(&cluster).await;
    let leader = &cluster.nodes[leader];
    let other = &cluster.nodes[WATCHED].rabbitmq_url;
    let plain =
        PlainPublisher::start(&leader.rabbitmq_url, other, format!("{}.plain", stack.broker.names().queue)).await;
    let flow = flow(&stack);
    sleep(CALM).await;
    leader.pause(Server::RabbitMq).await;
    sleep(standstill).await;
    leader.resume(Server::RabbitMq).await;
    sleep(CALM).await;
    let (silence, plain) = (longest_silence(&stack), plain.longest_silence().await);
    let counted = count(&stack, flow.stop().await).await;
    report(&format!(
        "leader still for {standstill:?}: nothing delivered for {silence:?}, a plain client published nothing for {plain:?}; {counted}"
    ));
    assert!(silence < plain + BEHIND, "{silence:?} is more than {BEHIND:?} after {plain:?}");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stands_still_is_left() {
    the_leader_stands_still(STANDSTILL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes two minutes"]
async fn a_leader_that_stands_still_for_long_is_left() {
    the_leader_stands_still(Duration::from_secs(90)).await;
}

/// Who has nothing to do takes a place anew each 10 s, which must not be lost when there is none to be had. The relay's
/// connection to that node is a new one by then, and gives what it was to publish back to the other one after 5 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_worker_hears_of_the_next_leader() {
    let cluster = Cluster::start().await;
    let (stack, leader) = start(&cluster).await;
    let flow = flow(&stack);
    sleep(CALM).await;
    let outcome = flow.stop().await;
    stack.wait_until_drained(PATIENCE).await;
    cluster.nodes[leader].pause(Server::RabbitMq).await;
    sleep(Duration::from_secs(20)).await;
    let posted = Instant::now();
    stack.post("{}", "").await;
    stack.wait_for_deliveries(outcome.accepted + 1).await;
    let delivered = posted.elapsed();
    cluster.nodes[leader].resume(Server::RabbitMq).await;
    report(&format!("leader still for 20 s, nothing to do: delivered {delivered:?} after it was posted"));
    assert!(delivered < BEHIND, "{delivered:?}");
    // Each place that it asked for in vain it would get now.
    sleep(CALM).await;
    assert_eq!(stack.broker.consumers().await, 1);
    stack.finish().await;
}

/// What is handed to the one at that node is missed there, published again, and comes to the other one in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes more than a minute, and shows little more"]
async fn one_of_two_workers_is_at_the_node_that_stands_still() {
    let cluster = Cluster::start().await;
    let (mut stack, leader) = start(&cluster).await;
    stack.set_worker_env("RABBITMQ_URL", &cluster.nodes[leader].rabbitmq_url);
    stack.start_worker().await;
    let flow = flow(&stack);
    sleep(CALM).await;
    cluster.nodes[leader].pause(Server::RabbitMq).await;
    sleep(Duration::from_secs(40)).await;
    let silence = longest_silence(&stack);
    cluster.nodes[leader].resume(Server::RabbitMq).await;
    let counted = count(&stack, flow.stop().await).await;
    let slow = "SELECT count(*) FROM webhook_jobs JOIN harness.received ON received.job_id = webhook_jobs.id
        WHERE received.at > created_at + interval '15 seconds'";
    stack.assert_invariants().await;
    let slow = stack.count(slow).await;
    report(&format!(
        "leader still for 40 s, and one of two workers there: nothing delivered for {silence:?}, {slow} took more than 15 s; \
         {counted}"
    ));
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_killed_or_restarted_lose_nothing() {
    let cluster = Cluster::start().await;
    let (stack, leader) = start(&cluster).await;
    let queue = stack.broker.names().queue.clone();
    let flow = flow(&stack);
    sleep(CALM).await;
    let killed = Instant::now();
    cluster.nodes[leader].kill(Server::RabbitMq).await;
    let place = cluster.wait_for_place(&queue, WATCHED, 2).await;
    let elected = killed.elapsed();
    assert_ne!(place.leader, Some(leader));
    sleep(CALM).await;
    let silence = longest_silence(&stack);
    cluster.nodes[leader].start_again(Server::RabbitMq).await;
    cluster.wait_for_place(&queue, WATCHED, 3).await;
    report(&format!("leader killed: another after {elected:?}, nothing delivered for {silence:?}"));
    // The killed one has been started already.
    for node in (0..cluster.nodes.len()).filter(|node| *node != leader) {
        cluster.nodes[node].stop(Server::RabbitMq).await;
        cluster.nodes[node].start_again(Server::RabbitMq).await;
        cluster.wait_for_place(&queue, (node + 1) % cluster.nodes.len(), 3).await;
    }
    sleep(CALM).await;
    let silence = longest_silence(&stack);
    let counted = count(&stack, flow.stop().await).await;
    report(&format!("and the others restarted: nothing delivered for {silence:?}; {counted}"));
    stack.finish().await;
}

/// Declared while the cluster was forming, the queue is on its first node only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_whose_only_node_is_dead_is_made_anew_on_the_others() {
    let mut cluster = Cluster::forming().await;
    let stack = Stack::builder().workers(0).env("RABBITMQ_URL", &cluster.nodes[0].rabbitmq_url);
    let mut stack = stack.start_between(Servers::shared().await, &cluster.nodes[0]).await;
    stack.relays.remove(0).terminate().await;
    cluster.form().await;
    let queue = stack.broker.names().queue.clone();
    assert_eq!(cluster.wait_for_place(&queue, WATCHED, 1).await.members, [0]);
    stack.set_env("RABBITMQ_URL", &cluster.url_from(1));
    Management::of(&cluster.nodes[WATCHED]).create_monitor("monitor").await;
    stack.set_env(
        "RABBITMQ_MANAGEMENT_URL",
        &cluster.nodes[WATCHED].management_url.replace("guest:guest", "monitor:monitor"),
    );
    stack.start_relay().await;
    stack.start_worker().await;
    stack.post("{}", "").await;
    stack.wait_for_deliveries(1).await;
    wait_for_members(&stack, 1.0).await;
    stack.relays[0].says("too few nodes").await;
    stack.relays[0].says(&cluster.nodes[1].rabbitmq_node).await;
    let killed = Instant::now();
    cluster.nodes[0].kill(Server::RabbitMq).await;
    stack.post("{}", "").await;
    stack.wait_for_deliveries(2).await;
    let delivered = killed.elapsed();
    let place = cluster.wait_for_place(&queue, WATCHED, 2).await;
    report(&format!("only member killed: delivered after {delivered:?}, the queue is on {:?}", place.members));
    cluster.nodes[0].start_again(Server::RabbitMq).await;
    wait_for_members(&stack, 3.0).await;
    let log = stack.relays[0].log();
    assert_eq!(log.matches("too few nodes").count(), 1, "{log}");
    // What the documentation tells to run, for the queue of dead letters, which is where it was.
    for node in &cluster.nodes[1..] {
        node.grow_queues().await;
    }
    assert_eq!(cluster.wait_for_place(&format!("{queue}.dead"), WATCHED, 3).await.members.len(), 3);
    stack.finish().await;
}

/// Waits until the relay has found the queue on so many of the three nodes.
async fn wait_for_members(stack: &Stack, members: f64) {
    let (queue, nodes) = ("outhook_relay_queue_members", "outhook_relay_broker_nodes");
    wait_until("the relay to count members", PATIENCE, async || {
        let counted = (stack.relays[0].series(queue).await, stack.relays[0].series(nodes).await);
        (counted.0 - members).abs() < 0.1 && (counted.1 - 3.0).abs() < 0.1
    })
    .await;
}
