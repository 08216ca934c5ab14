//! Connections are kept for the next webhook, and one that died meanwhile costs no attempt, unless it died
//! with a request in it: whether that was read, nobody knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use harness::attempts::{attempts, status_and_error};
use harness::{PATIENCE, RawServer, Stack};
use tokio::io::AsyncWriteExt;
use tokio::sync::Barrier;
use tokio::time::sleep;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

const WEBHOOKS: u64 = 20;

async fn deliver_one(stack: &Stack, server: &RawServer) -> uuid::Uuid {
    let job_id = stack.client.post("{}", &server.url()).await.job_id;
    stack.wait_until_drained(PATIENCE).await;
    job_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_kept_is_used_again_and_one_that_was_closed_is_not() {
    let stack = Stack::start().await;
    let keeping = RawServer::start(|mut connection| async move {
        loop {
            connection.request().await?;
            connection.stream.write_all(OK).await?;
        }
    })
    .await;
    // Promises to keep it, by saying nothing, and closes it with the answer.
    let closing = RawServer::answering(OK).await;
    let resetting = RawServer::start(|mut connection| async move {
        connection.request().await?;
        connection.stream.write_all(OK).await?;
        connection.stream.set_zero_linger()
    })
    .await;
    for server in [&keeping, &closing, &resetting] {
        for _ in 0..WEBHOOKS {
            let job_id = deliver_one(&stack, server).await;
            let attempts = attempts(stack.pool(), job_id).await;
            assert!(attempts.len() == 1 && attempts[0].outcome == "success", "{attempts:?}");
        }
    }
    assert_eq!(closing.connections(), WEBHOOKS);
    assert_eq!(resetting.connections(), WEBHOOKS);
    // On a busy machine the next webhook may come after a kept connection's time, but not most of them.
    let kept = keeping.connections();
    assert!(kept < WEBHOOKS / 2, "{kept} connections for {WEBHOOKS} webhooks");
    stack.finish_unheard().await;
}

/// Most receivers close what was idle for 5 s or more: a request must not meet that close on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_idle_for_as_long_as_receivers_keep_them_is_not_used_again() {
    let stack = Stack::start().await;
    let server = RawServer::start(|mut connection| async move {
        connection.request().await?;
        connection.stream.write_all(OK).await?;
        // As if the close were on its way: whatever comes now is not answered.
        connection.request().await?;
        Ok(())
    })
    .await;
    deliver_one(&stack, &server).await;
    sleep(Duration::from_secs(5)).await;
    let job_id = deliver_one(&stack, &server).await;
    let attempts = attempts(stack.pool(), job_id).await;
    assert!(attempts.len() == 1 && attempts[0].outcome == "success", "{attempts:?}");
    assert_eq!(server.connections(), 2);
    stack.finish_unheard().await;
}

/// A receiver that was started anew has forgotten all kept connections: a retry does not try one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_goes_by_a_connection_of_its_own() {
    const KEPT: usize = 6;
    let stack = Stack::builder().env("BACKOFF_BASE_MS", "100").start().await;
    // The first are answered when all of them are there, so that each has a connection of its own.
    let (all_there, taken) = (Arc::new(Barrier::new(KEPT)), Arc::new(AtomicUsize::new(0)));
    let server = RawServer::start(move |mut connection| {
        let (all_there, number) = (Arc::clone(&all_there), taken.fetch_add(1, Ordering::SeqCst));
        async move {
            connection.request().await?;
            if number < KEPT {
                all_there.wait().await;
            }
            connection.stream.write_all(OK).await?;
            connection.request().await?;
            Ok(())
        }
    })
    .await;
    stack.enqueue(&server.url(), "{}", 6).await;
    stack.wait_until_drained(PATIENCE).await;
    let job_id = deliver_one(&stack, &server).await;
    let attempts = attempts(stack.pool(), job_id).await;
    // On a machine that is very busy, the kept connections' time may have been over.
    assert!(attempts.len() <= 2, "{attempts:?}");
    assert_eq!(attempts.last().map(|it| it.outcome.as_str()), Some("success"), "{attempts:?}");
    stack.finish_unheard().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_dies_with_a_request_in_it_is_a_failed_attempt_that_says_so() {
    let stack = Stack::start().await;
    let server = RawServer::start(|mut connection| async move {
        connection.request().await?;
        connection.stream.write_all(OK).await?;
        // The next request on the same connection is read, and perhaps acted upon.
        connection.request().await?;
        Ok(())
    })
    .await;
    deliver_one(&stack, &server).await;
    let job_id = deliver_one(&stack, &server).await;
    assert_eq!(status_and_error(stack.pool(), job_id).await.0, "success");
    let attempts = attempts(stack.pool(), job_id).await;
    // On a machine that is very busy, the kept connection's time may have been over.
    if server.requests().len() > 2 {
        assert_eq!(attempts.len(), 2, "{attempts:?}");
        let error = "the request failed: connection closed before message completed";
        assert_eq!((attempts[0].outcome.as_str(), attempts[0].error.as_str()), ("failed", error));
    }
    stack.finish_unheard().await;
}
