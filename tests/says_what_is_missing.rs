//! Probes of relay and worker: alive while they live, ready only when they reach what they need. An api that is asked to
//! end says so to load balancers before it closes its port.

use std::time::Duration;

use harness::client::{Response, http_client, send};
use harness::processes::{Process, Program};
use harness::servers::free_port;
use harness::{Mode, PATIENCE, Servers, Stack, TcpProxy, wait_until};
use reqwest::Method;
use rustix::process::Signal;

async fn ask(process: &Process, method: Method, path: &str) -> Response {
    send(http_client().request(method, process.metrics_url(path))).await.expect("it answers")
}

async fn probe(process: &Process, path: &str) -> Response {
    ask(process, Method::GET, path).await
}

/// Waits until it says so of both servers, with this status.
async fn wait_for_readiness(process: &Process, status: u16, postgres: &str, rabbitmq: &str) {
    let what = format!("{} to say {status}, {postgres}, {rabbitmq}", process.name());
    wait_until(&what, PATIENCE, async || {
        let ready = probe(process, "/ready").await;
        let said = ready.json();
        ready.status == status && said["postgres"] == postgres && said["rabbitmq"] == rabbitmq
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_and_worker_are_ready_only_while_they_reach_both_servers() {
    let servers = Servers::shared().await;
    let (postgres, _) = TcpProxy::before(&servers.database_url).await;
    let (rabbitmq, broker_url) = TcpProxy::before(&servers.rabbitmq_url).await;
    let stack = Stack::builder()
        .database_through(&postgres)
        .relay_env("RABBITMQ_URL", &broker_url)
        .worker_env("RABBITMQ_URL", &broker_url)
        .start()
        .await;
    stack.post("{}", "").await;
    stack.wait_until_drained(PATIENCE).await;
    for (process, lost_postgres, lost_rabbitmq) in [
        (&stack.relays[0], "is not reached", "is not reached"),
        (&stack.workers[0], "does not answer", "is not consumed from"),
    ] {
        wait_for_readiness(process, 200, "ok", "ok").await;
        assert!(probe(process, "/ready").await.json()["last_turn_sec"].is_u64(), "it has worked");

        postgres.set(Mode::Reset);
        wait_for_readiness(process, 503, lost_postgres, "ok").await;
        assert_eq!(probe(process, "/health").await.status, 200, "it lives");
        postgres.set(Mode::Forward);
        wait_for_readiness(process, 200, "ok", "ok").await;

        rabbitmq.set(Mode::Reset);
        wait_for_readiness(process, 503, "ok", lost_rabbitmq).await;
        rabbitmq.set(Mode::Forward);
        wait_for_readiness(process, 200, "ok", "ok").await;
    }
    stack.finish().await;
}

/// Nobody listens at port 1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_server_they_live_and_are_not_ready() {
    for program in [Program::Relay, Program::Worker] {
        let address = format!("127.0.0.1:{}", free_port());
        let environment = [
            ("DATABASE_URL", "postgres://outhook:secret@127.0.0.1:1/outhook"),
            ("RABBITMQ_URL", "amqp://guest:secret@127.0.0.1:1/%2f"),
            ("METRICS_ADDR", address.as_str()),
        ];
        let mut process = Process::start(format!("without_any_server-{program:?}"), program, &environment).await;
        let url = process.metrics_url("/health");
        wait_until("it to listen", PATIENCE, async || send(http_client().get(&url)).await.is_ok()).await;
        wait_for_readiness(&process, 503, "has not answered yet", "has not answered yet").await;
        for (method, path, status) in [
            (Method::GET, "/health", 200),
            (Method::HEAD, "/health", 200),
            (Method::GET, "/metrics", 200),
            (Method::GET, "/nonsense", 404),
            (Method::GET, "/", 404),
            (Method::POST, "/health", 405),
        ] {
            assert_eq!(ask(&process, method, path).await.status, status, "{program:?} {path}");
        }
        process.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_stands_still_is_not_ready() {
    let postgres = TcpProxy::before(&Servers::shared().await.database_url).await.0;
    let stack = Stack::builder().database_through(&postgres).workers(0).start().await;
    wait_for_readiness(&stack.relays[0], 200, "ok", "ok").await;
    // Before its turn's time-out it knows of nothing that is lost.
    postgres.set(Mode::Stall);
    wait_for_readiness(&stack.relays[0], 503, "ok", "ok").await;
    postgres.set(Mode::Forward);
    wait_for_readiness(&stack.relays[0], 200, "ok", "ok").await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_is_not_ready_before_it_closes_its_port() {
    let mut stack = Stack::builder().env("SHUTDOWN_DELAY_SEC", "10").start().await;
    let mut api = stack.apis.remove(0);
    assert_eq!(probe(&api, "/ready").await.status, 404, "that is asked where webhooks are sent");
    api.signal(Signal::TERM);
    api.wait_for_word("stopping").await;
    let ready = send(stack.client.get("/ready")).await.expect("it still listens");
    assert_eq!((ready.status, ready.body.as_str()), (503, r#"{"status":"stopping"}"#));
    assert_eq!(send(stack.client.get("/health")).await.expect("it still listens").status, 200);
    stack.post("{}", "").await;
    let status = api.wait(PATIENCE).await;
    assert_eq!(status.code(), Some(0), "{status}");
    stack.start_api().await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_does_not_wait_for_load_balancers() {
    let mut stack = Stack::builder().env("SHUTDOWN_DELAY_SEC", "3600").start().await;
    let mut api = stack.apis.remove(0);
    api.signal(Signal::TERM);
    api.wait_for_word("stopping").await;
    api.signal(Signal::TERM);
    assert_eq!(api.wait(Duration::from_secs(5)).await.code(), Some(130));
    stack.abandon().await;
}
