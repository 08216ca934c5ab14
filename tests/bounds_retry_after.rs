//! A receiver may ask for a later retry, within bounds, and for nothing else.

use std::time::Duration;

use harness::attempts::{attempts, enqueue};
use harness::{PATIENCE, RawServer, Stack, wait_until};

/// What a Retry-After counts up to here, and no backoff comes near.
const MAX: Duration = Duration::from_mins(10);

/// The longest backoff here.
const BACKOFF: Duration = Duration::from_secs(1);

/// From the answer to its record on a busy machine.
const SLACK: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_asks_for_is_read_or_bounded_or_ignored() {
    let stack = Stack::builder()
        .env("RETRY_AFTER_MAX_SEC", &MAX.as_secs().to_string())
        .env("BACKOFF_MAX_SEC", &BACKOFF.as_secs().to_string())
        .env("MAX_RETRIES", "2")
        .start()
        .await;
    let in_time = Duration::from_mins(5);
    let ignored = Duration::ZERO;
    let rows = [
        ("300", in_time),
        (" 300 ", in_time),
        ("1000000000", MAX),
        ("Tue, 31 Dec 2199 23:59:59 GMT", MAX),
        // The forms of RFC 850, whose years have two digits, and of C's asctime.
        ("Thursday, 31-Dec-65 23:59:59 GMT", MAX),
        ("Tue Dec 31 23:59:59 2199", MAX),
        ("5\r\nRetry-After: 300\r\nRetry-After: soon", in_time),
        ("-1", ignored),
        ("-1000000000", ignored),
        ("1e9", ignored),
        ("300.5", ignored),
        ("99999999999999999999999", MAX),
        ("Thu, 01 Jan 1970 00:00:00 GMT", ignored),
        ("Thu, 32 Foo 2026 99:00:00 GMT", ignored),
        ("soon", ignored),
        ("", ignored),
        ("\u{661}\u{662}", ignored),
    ];
    for (text, expected) in rows {
        let server = RawServer::answering(format!("HTTP/1.1 503 No\r\nRetry-After: {text}\r\n\r\n")).await;
        let statement = "SELECT outhook.enqueue($1, '{}', max_attempts => 2)";
        let job_id: uuid::Uuid =
            sqlx::query_scalar(statement).bind(server.url()).fetch_one(stack.pool()).await.expect("it is a URL");
        wait_until("the first attempt", PATIENCE, async || !attempts(stack.pool(), job_id).await.is_empty()).await;
        let first = attempts(stack.pool(), job_id).await.swap_remove(0);
        assert_eq!(first.status_code, Some(503), "{text:?}: {first:?}");
        let waits = first.retry_at.expect("there is a second attempt") - first.started_at;
        let (least, most) = (expected, expected.max(BACKOFF) + SLACK);
        assert!(waits >= least && waits <= most, "{text:?}: the next attempt is {waits} later");
        // Those that wait long are not waited for.
        if expected > SLACK {
            let statement = "SELECT outhook.cancel($1)";
            let cancelled: bool =
                sqlx::query_scalar(statement).bind(job_id).fetch_one(stack.pool()).await.expect("it is known");
            assert!(cancelled, "{text:?}");
        }
    }
    stack.finish_unheard().await;
}

/// Only the header of an answer that asks for another try counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_not_bring_a_finished_job_back() {
    let stack = Stack::start().await;
    let server = RawServer::answering("HTTP/1.1 200 OK\r\nRetry-After: 300\r\nContent-Length: 0\r\n\r\n").await;
    let job_id = enqueue(stack.pool(), &server.url(), "{}").await.expect("it is a URL");
    stack.wait_until_drained(PATIENCE).await;
    let attempts = attempts(stack.pool(), job_id).await;
    assert_eq!((attempts.len(), attempts[0].retry_at), (1, None), "{attempts:?}");
    stack.finish_unheard().await;
}
