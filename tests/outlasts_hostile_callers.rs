//! Whoever has no secret may open connections, send halves of requests and stand still: those who have one are
//! served all the same, at once, and the api does not grow.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::client::{Response, send};
use harness::{PATIENCE, Stack, StackBuilder, Webhook, report, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TARGET: &str = "http://127.0.0.1:9/hook";

/// How soon whoever has a secret is answered while strangers stand in the way.
const AT_ONCE: Duration = Duration::from_secs(3);

const MIB: usize = 1024 * 1024;

/// What the api may hold of bodies whose signature it has not seen whole.
const UNVERIFIED: usize = 16 * MIB;

/// Beside those: for each connection what is read at once, and whatever the allocator keeps.
const OVERHEAD: usize = 64 * MIB;

/// Only the api, whose own time-outs put nobody out before the test is over.
fn api() -> StackBuilder {
    Stack::builder().relays(0).workers(0).env("HEADER_TIMEOUT_SEC", "300").env("BODY_TIMEOUT_SEC", "300")
}

/// A stranger who has sent this, or as much of it as was taken, and stands still.
async fn stranger(stack: &Stack, parts: &[&[u8]]) -> TcpStream {
    let address = stack.client.url().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.expect("the api listens");
    for part in parts {
        if stream.write_all(part).await.is_err() {
            break;
        }
    }
    stream
}

/// The head of a request with a body of 1 MiB, for which no signature need be known.
const HEAD: &[u8] =
    b"POST /webhooks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1048576\r\n\r\n";

/// All but the last ten bytes of that.
static ALMOST_ALL: [u8; MIB - 10] = [b' '; MIB - 10];

/// Posts a webhook; the next one comes by another connection. So does the first after one that came before strangers
/// did: a connection that is kept may be closed as its next request comes.
async fn post(stack: &Stack) -> Response {
    let request = stack.client.request(Webhook::to(TARGET)).header("Connection", "close");
    send(request).await.expect("the api answers")
}

/// Posts a webhook and asks for the process's health, each by a new connection; both must be answered at once.
async fn assert_served(stack: &Stack, case: &str) {
    let started = Instant::now();
    let response = post(stack).await;
    assert_eq!(response.status, 202, "{case}: {}", response.body);
    let posted = started.elapsed();
    assert!(posted < AT_ONCE, "{case}: the webhook was accepted after {posted:?}");
    let health = send(stack.client.get("/health").header("Connection", "close")).await.expect("the api answers");
    assert_eq!(health.status, 200, "{case}");
    assert!(started.elapsed() < AT_ONCE + posted, "{case}: the probe was answered after {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_nobody_vouches_for_share_a_bounded_memory() {
    let stack = api().env("UNVERIFIED_BODY_BYTES", &UNVERIFIED.to_string()).start().await;
    assert_served(&stack, "before").await;
    let before = stack.apis[0].peak_memory();
    let almost_all: [&[u8]; 2] = [HEAD, &ALMOST_ALL];
    let mut strangers = Vec::new();
    for _ in 0..30 {
        strangers.extend(join_all((0..10).map(|_| stranger(&stack, &almost_all))).await);
        assert_served(&stack, "while they send").await;
    }
    assert_served(&stack, "while they stand still").await;

    let grown = usize::try_from(stack.apis[0].peak_memory() - before).expect("it is less than all memory");
    let held = stack.apis[0].counter("outhook_api_unverified_bytes").await;
    let made_way = stack.apis[0].counter("outhook_api_unverified_made_way_total").await;
    report(&format!(
        "300 bodies of 1 MiB that stand still: {held} bytes held, {made_way} made way, {grown} bytes grown"
    ));
    assert!(grown < UNVERIFIED + OVERHEAD, "the api has grown by {grown} bytes");
    assert!(held > 0.0 && held <= f64::from(u32::try_from(UNVERIFIED).expect("it is small")), "{held} bytes held");
    assert!(made_way > 200.0, "{made_way} made way");
    let warnings = stack.apis[0].log().matches(" WARN ").count();
    assert!((1..=30).contains(&warnings), "{warnings} warnings of {made_way} that made way");

    // The first to stand still has been told, or cut off.
    let mut answer = Vec::new();
    let _ = strangers[0].read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(strangers);
    wait_until("all bytes to be freed", PATIENCE, async || {
        stack.apis[0].counter("outhook_api_unverified_bytes").await == 0.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_stand_still_make_way() {
    let stack = api().env("MAX_CONNECTIONS", "64").start().await;
    assert_served(&stack, "before").await;
    let kinds: [(&str, &[&[u8]]); 4] = [
        ("silent", &[]),
        ("in the middle of a head", &[b"POST /webhooks HTTP/1.1\r\nX-A: 1\r\n"]),
        ("kept alive", &[b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"]),
        ("in the middle of a body", &[HEAD, b"{"]),
    ];
    let mut strangers = Vec::new();
    for round in 1..=3 {
        for (kind, parts) in &kinds {
            strangers.extend(join_all((0..200).map(|_| stranger(&stack, parts))).await);
            assert_served(&stack, &format!("{kind}, round {round}")).await;
        }
    }
    let open = stack.apis[0].counter("outhook_api_connections").await;
    let made_way = stack.apis[0].counter("outhook_api_connections_made_way_total").await;
    report(&format!("2,400 connections that stand still: {open} open, {made_way} made way"));
    assert!(open <= 64.0, "{open} connections are open");
    assert!(made_way > 2_000.0, "{made_way} made way");
    let warnings = stack.apis[0].log().matches(" WARN ").count();
    assert!((1..=30).contains(&warnings), "{warnings} warnings of {made_way} that made way");
}

/// Who has shown a secret is not cut off before the answer is out, whoever else wants the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_verified_make_way_for_nobody() {
    /// All that may be open: nobody is left to make way but these.
    const UNDER_WAY: u32 = 16;
    let stack = api().env("MAX_CONNECTIONS", &UNDER_WAY.to_string()).start().await;
    let mut holder = stack.pool().begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE webhook_jobs IN ACCESS EXCLUSIVE MODE").execute(&mut *holder).await.expect("the lock");
    let strangers = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '-- accept_jobs%'";
        wait_until("the webhooks to wait", PATIENCE, async || {
            let open = stack.apis[0].counter("outhook_api_connections").await;
            open >= f64::from(UNDER_WAY) && stack.count(waiting).await > 0
        })
        .await;
        // Time enough for the last of them to be verified, which nothing tells.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let strangers = join_all((0..100).map(|_| stranger(&stack, &[]))).await;
        // Time enough to cut somebody off. In all it is less than the api waits for a lock.
        tokio::time::sleep(Duration::from_millis(200)).await;
        holder.rollback().await.expect("the lock goes");
        strangers
    };
    let (answers, _strangers) = tokio::join!(join_all((0..UNDER_WAY).map(|_| post(&stack))), strangers);
    // 503 where the lock was held for longer than the api waits; but an answer.
    assert!(answers.iter().all(|answer| [202, 503].contains(&answer.status)), "{answers:?}");
    assert_served(&stack, "afterwards").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_use_up_the_file_descriptors_make_way() {
    let stack = api().start().await;
    // With this its connections to Postgres are there.
    assert_served(&stack, "before").await;
    stack.apis[0].limit_files_to_open(20);
    let mut strangers = Vec::new();
    for round in 1..=3 {
        strangers.extend(join_all((0..100).map(|_| stranger(&stack, &[]))).await);
        assert_served(&stack, &format!("round {round}")).await;
    }
    stack.apis[0].says("Too many open files").await;
    let warnings = stack.apis[0].log().matches(" WARN ").count();
    assert!(warnings <= 10, "{warnings} warnings");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_keeps_the_connection_that_strangers_want() {
    let stack = api().env("MAX_CONNECTIONS", "16").start().await;
    assert_served(&stack, "before").await;
    let text = Webhook::to(TARGET).body();
    let signature = stack.client.sign(text.as_bytes());
    let head = format!(
        "POST /webhooks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Signature: {signature}\r\nContent-Length: {}\r\n\r\n",
        text.len()
    );
    let request: [&[u8]; 2] = [head.as_bytes(), text.as_bytes()];
    let mut caller = stranger(&stack, &request).await;
    let mut answer = [0; 1024];
    for round in 1..=3 {
        let length = caller.read(&mut answer).await.expect("an answer");
        assert!(answer[..length].starts_with(b"HTTP/1.1 202 "), "round {round}: {length} bytes");
        let strangers = join_all((0..50).map(|_| stranger(&stack, &[]))).await;
        assert_served(&stack, "among strangers").await;
        drop(strangers);
        caller.write_all(&request.concat()).await.expect("the connection is open");
    }
}
