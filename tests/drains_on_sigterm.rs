//! SIGTERM: intake stops, what is under way is finished, nothing is held, exit 0. A second one: at once.

use std::time::Duration;

use harness::load::Burst;
use harness::{Mode, PATIENCE, Process, Stack, TcpProxy, client, wait_until};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The first signal is being obeyed, and something keeps that from ending; the second one ends it.
async fn assert_second_signal_ends(process: &mut Process) {
    process.signal(Signal::TERM);
    process.wait_for_word("stopping").await;
    assert!(process.has_ended().is_none(), "{} had nothing to wait for", process.name());
    process.signal(Signal::TERM);
    let status = process.wait(Duration::from_secs(1)).await;
    assert_eq!(status.code(), Some(130), "{status}");
}

/// Sends all of a request but its last byte.
async fn half_a_request(stack: &Stack) -> TcpStream {
    let body = stack.webhook("").body();
    let address = stack.client.url().trim_start_matches("http://");
    let head = format!(
        "POST /webhooks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Signature: {}\r\nContent-Length: {}\r\n\r\n",
        stack.client.sign(body.as_bytes()),
        body.len(),
    );
    let mut stream = TcpStream::connect(address).await.expect("the api listens");
    stream.set_nodelay(true).expect("a TCP option");
    stream.write_all(head.as_bytes()).await.expect("the api reads");
    stream.write_all(&body.as_bytes()[..body.len() - 1]).await.expect("the api reads");
    wait_until("the api to have read it", PATIENCE, async || {
        stack.apis[0].counter("outhook_api_unverified_bytes").await > 0.0
    })
    .await;
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_answers_what_it_has_begun() {
    let mut stack = Stack::start().await;
    let mut request = half_a_request(&stack).await;
    let mut api = stack.apis.remove(0);
    api.signal(Signal::TERM);
    api.wait_for_word("stopping").await;
    wait_until("new connections to be refused", PATIENCE, async || {
        client::send(stack.client.get("/health")).await.is_err()
    })
    .await;
    request.write_all(b"}").await.expect("the api reads");
    let mut response = String::new();
    request.read_to_string(&mut response).await.expect("the api answers");
    assert!(response.starts_with("HTTP/1.1 202"), "{response}");
    assert_eq!(api.wait(PATIENCE).await.code(), Some(0));

    let (_, text) = response.split_once("\r\n\r\n").expect("the head ends");
    let text = &text[text.find('{').expect("a JSON body")..=text.rfind('}').expect("a JSON body")];
    let job_id = serde_json::from_str::<serde_json::Value>(text).expect("a JSON body")["job_id"].clone();
    stack.client.remember(job_id.as_str().and_then(|id| id.parse().ok()).expect("a UUID"), Some("{}"));
    stack.start_api().await;
    stack.wait_for_deliveries(1).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_stops_under_load_without_losing_a_word() {
    let mut stack = Stack::start().await;
    let mut burst = Burst::start(&stack.client, &stack.receiver_url(""), 600, 32);
    for stop in 1..=3 {
        burst.wait_for(stop * 150).await;
        stack.apis.remove(0).terminate().await;
        stack.start_api().await;
    }
    let outcome = burst.outcome().await;
    assert_eq!(outcome.accepted + outcome.known, 600, "{outcome:?}");
    assert_eq!(outcome.known, 0, "a request was accepted and not answered: {outcome:?}");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relay_records_what_it_has_published() {
    let mut stack = Stack::start().await;
    let wire = stack.listen().await;
    let burst = Burst::start(&stack.client, &stack.receiver_url(""), 600, 32);
    for stop in 1..=3 {
        wire.wait_for(stop * 100, PATIENCE).await;
        stack.relays.remove(0).terminate().await;
        stack.start_relay().await;
    }
    assert_eq!(burst.outcome().await.accepted, 600);
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!((wire.messages(), wire.duplicates()), (600, 0), "a publication was not recorded");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_worker_finishes_its_deliveries_and_gives_back_the_rest() {
    const SLOTS: usize = 8;
    let mut stack = Stack::builder().env("WORKER_CONCURRENCY", "8").start().await;
    for _ in 0..4 * SLOTS {
        stack.post("{}", "?delay_ms=700").await;
    }
    // All slots are busy, and as many messages again are at hand.
    stack.wait_for_deliveries(SLOTS).await;
    stack.workers.remove(0).terminate().await;

    let begun = stack.receiver.received().len();
    assert_eq!(stack.under_way().await, 0, "something is held");
    let recorded = stack.count("SELECT count(*) FROM webhook_attempts WHERE outcome = 'success'").await;
    assert_eq!(usize::try_from(recorded), Ok(begun), "every delivery that was begun is recorded");
    assert!(begun < 4 * SLOTS, "there was nothing to give back");
    let waiting = u32::try_from(4 * SLOTS - begun).expect("it is small");
    wait_until("the rest to be back in the queue", PATIENCE, async || stack.broker.ready().await == waiting).await;

    stack.start_worker().await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_api_at_once() {
    let mut stack = Stack::start().await;
    let request = half_a_request(&stack).await;
    assert_second_signal_ends(&mut stack.apis.remove(0)).await;
    drop(request);
    stack.start_api().await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_relay_at_once() {
    let broker = &harness::Servers::shared().await.rabbitmq_url;
    let (proxy, through_proxy) = TcpProxy::before(broker).await;
    let mut stack = Stack::builder().relay_env("RABBITMQ_URL", &through_proxy).start().await;
    // No confirm comes: the relay waits for it, in its transaction.
    proxy.set(Mode::Stall);
    stack.post("{}", "").await;
    wait_until("the relay to hold the row", PATIENCE, async || {
        stack.count("SELECT count(*) FROM (SELECT FROM outbox FOR UPDATE SKIP LOCKED) AS free").await == 0
    })
    .await;
    assert_second_signal_ends(&mut stack.relays.remove(0)).await;
    proxy.set(Mode::Forward);
    stack.start_relay().await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_worker_at_once() {
    let mut stack = Stack::builder().env("HTTP_CLIENT_TIMEOUT_SEC", "2").start().await;
    stack.post("{}", "?hang=1&fail_times=1").await;
    stack.wait_for_deliveries(1).await;
    assert_second_signal_ends(&mut stack.workers.remove(0)).await;
    stack.start_worker().await;
    stack.finish().await;
}
