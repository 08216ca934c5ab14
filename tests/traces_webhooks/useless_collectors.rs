//! Collectors that are away, hang, never end or send elsewhere: they delay no webhook and no process's end.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use harness::{PATIENCE, RawServer, Stack, wait_for, wait_until};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;

use super::ENDPOINT;

/// What one request to a collector may take. Whoever waits for one waits as long, and for its repetitions.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Delivers with a collector like this, says once that it takes nothing, and ends in time.
async fn deliver_with(endpoint: &str) {
    let mut stack = Stack::builder().env(ENDPOINT, endpoint).start().await;
    for _ in 0..20 {
        let before = Instant::now();
        let id = stack.post("{}", "").await.job_id;
        wait_until("the delivery", PATIENCE, async || !stack.deliveries(id).is_empty()).await;
        let took = before.elapsed();
        assert!(took < EXPORT_TIMEOUT, "a webhook took {took:?}");
    }
    let lost = r#"outhook_spans_lost_total{reason="not_taken"}"#;
    let processes = [&stack.apis[0], &stack.relays[0], &stack.workers[0]];
    let mut before = Vec::new();
    for process in processes {
        let lost = async || Some(process.series(lost).await).filter(|lost| *lost > 0.0);
        before.push(wait_for("spans to be lost", PATIENCE, lost).await);
    }
    // More of them, whose loss is no news.
    stack.post("{}", "").await;
    for (process, before) in processes.into_iter().zip(before) {
        wait_until("more to be lost", PATIENCE, async || process.series(lost).await > before).await;
        let log = process.log();
        let said = log.lines().filter(|line| line.contains("WARN") && line.contains("the collector"));
        assert_eq!(said.count(), 1, "{log}");
        assert!(!log.contains(endpoint.trim_start_matches("http://")), "the log names a host: {log}");
    }
    // What is under way to the collector now is given up.
    stack.post("{}", "").await;
    stack.wait_until_drained(PATIENCE).await;
    let before = Instant::now();
    stack.workers[0].terminate().await;
    let took = before.elapsed();
    assert!(took < EXPORT_TIMEOUT, "the worker took {took:?} to end");
    stack.workers.clear();
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_delays_nothing() {
    // Taken, and nobody listens.
    let socket = TcpSocket::new_v4().expect("there are sockets");
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("loopback has free ports");
    let address = socket.local_addr().expect("it is bound");
    deliver_with(&format!("http://{address}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_delays_nothing() {
    let collector = RawServer::start(async |mut connection| {
        connection.request().await?;
        std::future::pending().await
    })
    .await;
    deliver_with(collector.url().trim_end_matches("/hook")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_answers_without_an_end_is_not_heard_out() {
    let collector = RawServer::start(async |mut connection| {
        connection.request().await?;
        connection.stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
        connection.write_for_ever(&[b'x'; 4_096]).await
    })
    .await;
    let stack = Stack::builder().env(ENDPOINT, collector.url().trim_end_matches("/hook"));
    let stack = stack.start().await;
    let before = Instant::now();
    for _ in 0..3 {
        let (exported, worker) = ("outhook_spans_exported_total", &stack.workers[0]);
        let exported_before = worker.counter(exported).await;
        stack.post("{}", "").await;
        wait_until("its spans", PATIENCE, async || worker.counter(exported).await > exported_before).await;
    }
    assert!(before.elapsed() < 2 * EXPORT_TIMEOUT, "it is not listened to until the time-out");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_sends_elsewhere_is_not_followed() {
    let elsewhere = RawServer::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let redirect =
        format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", elsewhere.url());
    let collector = RawServer::start(move |mut connection| {
        let redirect = redirect.clone();
        async move {
            connection.request().await?;
            connection.stream.write_all(redirect.as_bytes()).await?;
            Ok(())
        }
    })
    .await;
    deliver_with(collector.url().trim_end_matches("/hook")).await;
    assert_eq!(elsewhere.connections(), 0);
}
