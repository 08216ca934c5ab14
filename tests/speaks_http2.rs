//! Receivers that speak HTTP/2 end connections, refuse requests and fall silent: what they have not begun with costs no
//! attempt, and a connection that is dead is not used again.

use std::time::{Duration, Instant};

use harness::certificates::{Authority, Identity};
use harness::http2_server::{Http2Server, MAX_CONCURRENT_STREAMS, Reaction};
use harness::nginx::Nginx;
use harness::{PATIENCE, Stack, StackBuilder, report};
use tempfile::NamedTempFile;

const WEBHOOKS: i32 = 200;

/// A stack whose worker trusts a receiver with this certificate. The file lasts as long as the stack needs it.
async fn stack(with: impl FnOnce(StackBuilder) -> StackBuilder) -> (Stack, Identity, NamedTempFile) {
    let authority = Authority::new();
    let roots = NamedTempFile::new().expect("there is room for a file");
    std::fs::write(roots.path(), authority.pem()).expect("there is room for a file");
    let path = roots.path().to_str().expect("the path is text");
    let stack = with(Stack::builder().worker_env("EGRESS_CA_FILE", path)).start().await;
    (stack, authority.issue("127.0.0.1"), roots)
}

/// Delivers many webhooks at once, each by one attempt.
async fn deliver_all(stack: &Stack, server: &Http2Server) {
    stack.enqueue(&server.url(), "{}", WEBHOOKS).await;
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.unsuccessful_attempts().await, 0, "an attempt failed although nothing was wrong");
    assert_eq!(stack.delivered().await, i64::from(WEBHOOKS));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_after_a_connections_last_request_is_sent_by_another() {
    let (stack, identity, _roots) = stack(|it| it).await;
    let server = Http2Server::start(&identity, |_, request| match request {
        1..=10 => Reaction::Answer,
        _ => Reaction::Goodbye,
    })
    .await;
    deliver_all(&stack, &server).await;
    report(&format!("ten requests a connection: {WEBHOOKS} webhooks by {} connections", server.connections()));
    assert_eq!(server.answered(), (WEBHOOKS.unsigned_abs(), 0), "a request was answered twice, or not by HTTP/2");
    stack.finish_unheard().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_refused_is_sent_again() {
    let (stack, identity, _roots) = stack(|it| it).await;
    let react = |_, request: u32| if request.is_multiple_of(3) { Reaction::Refuse } else { Reaction::Answer };
    let server = Http2Server::start(&identity, react).await;
    deliver_all(&stack, &server).await;
    assert_eq!(server.answered(), (WEBHOOKS.unsigned_abs(), 0), "a request was answered twice, or not by HTTP/2");
    stack.finish_unheard().await;
}

/// One that refuses everything is not asked for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_refuses_everything_fails_the_attempt() {
    let (stack, identity, _roots) = stack(|it| it.env("MAX_RETRIES", "1")).await;
    let server = Http2Server::start(&identity, |_, _| Reaction::Refuse).await;
    let id = stack.client.post("{}", &server.url()).await.job_id;
    stack.wait_until_drained(PATIENCE).await;
    let job = stack.client.job(id).await;
    assert_eq!(job["status"], "failed", "{job}");
    assert!(job["error"].as_str().is_some_and(|error| error.starts_with("the request failed: ")), "{job}");
    stack.finish_unheard().await;
}

/// Given up long before an attempt's time is over: all webhooks of its receiver would go that way until then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_fell_silent_is_not_used_again() {
    let slowly = |it: StackBuilder| it.worker_env("BACKOFF_BASE_MS", "100").env("HTTP_CLIENT_TIMEOUT_SEC", "60");
    let (stack, identity, _roots) = stack(slowly).await;
    let server = Http2Server::start(&identity, |connection, request| match (connection, request) {
        (1, 2..) => Reaction::Silence,
        _ => Reaction::Answer,
    })
    .await;
    for _ in 0..4 {
        stack.client.post("{}", &server.url()).await;
        stack.wait_until_drained(PATIENCE).await;
    }
    // Of the webhook that met the silence; on a machine that is busy the kept connection's time may have been over.
    assert!(stack.unsuccessful_attempts().await <= 1, "a dead connection was used again");
    assert_eq!(server.answered().0, 4);
    stack.finish_unheard().await;
}

/// One request at a time on a connection: by that one alone, most would have waited for longer than they may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_gets_no_turn_has_a_connection_of_its_own() {
    let (stack, identity, _roots) = stack(|it| it.env("HTTP_CLIENT_TIMEOUT_SEC", "4")).await;
    let slowly = |_, _| Reaction::AnswerAfter(Duration::from_millis(500));
    let server = Http2Server::start_with(&identity, &[(MAX_CONCURRENT_STREAMS, 1)], slowly).await;
    // Before it has heard of the limit, a client may send more at once.
    stack.client.post("{}", &server.url()).await;
    stack.wait_until_drained(PATIENCE).await;
    stack.enqueue(&server.url(), "{}", 40).await;
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.unsuccessful_attempts().await, 0, "an attempt failed whose request had no turn");
    assert_eq!(server.answered(), (41, 0), "a request was sent twice, or not by HTTP/2");
    report(&format!("one stream at a time: 41 webhooks by {} connections", server.connections()));
    stack.finish_unheard().await;
}

/// A receiver that does not speak HTTP/2 and takes its time: that a request waits for an answer is no reason to send it
/// again, not even if it has no body that anybody would ask for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_for_its_answer_is_sent_once() {
    let (stack, identity, _roots) = stack(|it| it.env("HTTP_CLIENT_TIMEOUT_SEC", "4")).await;
    let server = identity.serve_after(Duration::from_secs(2), None).await;
    for payload in [r#""""#, "{}", r#""text""#] {
        stack.client.post(payload, &server.url().replace("http:", "https:")).await;
    }
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.count("SELECT count(*) FROM webhook_attempts WHERE outcome = 'success'").await, 3);
    assert_eq!(server.requests().len(), 3, "one was sent twice");
    stack.finish_unheard().await;
}

/// The receiver that is met most often, with its defaults and with as little as it can be set to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_is_delivered_to() {
    const WEBHOOKS: i32 = 500;
    let (stack, identity, _roots) = stack(|it| it.env("MAX_RETRIES", "1")).await;
    for (limits, protocol) in [
        ("", " http2"),
        ("keepalive_requests 10;", " http2"),
        ("http2_max_concurrent_streams 1;", " http2"),
        ("keepalive_requests 10; http2_max_concurrent_streams 1;", " http2"),
        ("keepalive_requests 10;", ""),
    ] {
        let nginx = Nginx::start(&identity, protocol, limits).await;
        let started = Instant::now();
        stack.enqueue(&nginx.url(), r#"{"a": 1}"#, WEBHOOKS).await;
        stack.wait_until_drained(PATIENCE).await;
        report(&format!("nginx{protocol}; {limits}: {WEBHOOKS} webhooks in {:.1} s", started.elapsed().as_secs_f64()));
        assert_eq!(stack.unsuccessful_attempts().await, 0, "{limits}: an attempt failed at a receiver that is well");
        assert_eq!(stack.count("SELECT count(*) FROM destinations WHERE state <> 'closed'").await, 0, "{limits}");
    }
    stack.finish_unheard().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_may_be_switched_off() {
    let (stack, identity, _roots) = stack(|it| it.worker_env("HTTP2", "off")).await;
    let server = Http2Server::start(&identity, |_, _| Reaction::Answer).await;
    stack.client.post("{}", &server.url()).await;
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(server.answered(), (0, 1));
    stack.finish_unheard().await;
}
