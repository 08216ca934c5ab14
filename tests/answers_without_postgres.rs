//! While Postgres is away, slow or held by somebody, a caller gets 503 in bounded time and can send again
//! with its key; a broker that is away is no caller's concern.

use std::time::{Duration, Instant};

use harness::client::{Response, send};
use harness::tcp_proxy::Direction;
use harness::{Mode, PATIENCE, Program, Servers, Stack, TcpProxy, Webhook, report, wait_until};
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

const TARGET: &str = "http://127.0.0.1:9/hook";

/// What the api may take: a time-out of its own (6 s for a statement, 1 s for a connection) twice, since a
/// request may come right behind a batch that waits. The rest is for a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// A caller's own batch and the batch before it wait for a connection or a lock for less than 1 s each; the
/// rest is for a busy machine.
const CONNECTION_LIMIT: Duration = Duration::from_secs(4);

/// What needs no database; the rest is for a busy machine.
const HEALTH_LIMIT: Duration = Duration::from_secs(1);

/// Only the api, with a proxy before its database. Nobody listens to RabbitMQ.
async fn api() -> (Stack, TcpProxy) {
    let (proxy, _) = TcpProxy::before(&Servers::shared().await.database_url).await;
    (Stack::builder().relays(0).workers(0).database_through(&proxy).start().await, proxy)
}

async fn post(stack: &Stack, key: &str) -> Response {
    let started = Instant::now();
    let response = send(stack.client.request(Webhook::to(TARGET)).header("Idempotency-Key", key)).await;
    assert!(started.elapsed() < LIMIT, "the answer took {:?}", started.elapsed());
    response.expect("the api answers")
}

fn assert_unavailable(response: &Response) {
    assert_eq!(response.status, 503, "{}", response.body);
    assert_eq!(response.json()["error"]["code"], "unavailable");
    assert_eq!(response.headers["retry-after"], "1");
}

async fn get(stack: &Stack, path: &str) -> Response {
    send(stack.client.get(path)).await.expect("the api answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_gone_and_comes_back() {
    let (stack, proxy) = api().await;
    assert_eq!(post(&stack, "before").await.status, 202);

    proxy.set(Mode::Reset);
    assert_unavailable(&post(&stack, "meanwhile").await);
    assert_eq!(get(&stack, "/health").await.status, 200, "the process lives");
    let ready = get(&stack, "/ready").await;
    assert_eq!(ready.status, 503);
    assert_ne!(ready.json()["postgres"], "ok", "{}", ready.body);

    proxy.set(Mode::Forward);
    wait_until("the api to accept again", PATIENCE, async || post(&stack, "meanwhile").await.status == 202).await;
    assert_eq!(stack.jobs().await, 2);
}

/// An api that is started anew while Postgres is away.
async fn api_before_postgres() -> (Stack, TcpProxy) {
    let (mut stack, proxy) = api().await;
    stack.apis.remove(0).terminate().await;
    proxy.set(Mode::Reset);
    stack.spawn(Program::Api).await;
    stack.apis[0].wait_for_word("waiting").await;
    (stack, proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_starts_before_postgres_answers_meanwhile() {
    let (stack, proxy) = api_before_postgres().await;
    assert_eq!(get(&stack, "/health").await.status, 200, "the process lives");
    assert_eq!(get(&stack, "/ready").await.status, 503);
    let id = Uuid::now_v7();
    let token = |request: reqwest::RequestBuilder| request.bearer_auth(stack.client.api_token());
    for request in [
        stack.client.request(Webhook::to(TARGET)),
        token(stack.client.get(&format!("/webhooks/{id}"))),
        token(stack.client.delete(id)),
        token(stack.client.get("/destinations/keys?destination=https://example.com")),
    ] {
        assert_unavailable(&send(request).await.expect("the api answers"));
    }
    proxy.set(Mode::Forward);
    wait_until("Postgres to be found", PATIENCE, async || get(&stack, "/ready").await.status == 200).await;
    assert_eq!(post(&stack, "afterwards").await.status, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_stopped_before_postgres_is_there_was_never_ready() {
    let (mut stack, _proxy) = api_before_postgres().await;
    for program in [Program::Relay, Program::Worker] {
        stack.spawn(program).await;
    }
    for process in [&mut stack.apis, &mut stack.relays, &mut stack.workers].map(|processes| &mut processes[0]) {
        process.wait_for_word("waiting").await;
        process.terminate().await;
        let log = process.log();
        assert!(!log.contains("ready"), "{log}");
        assert!(log.contains("stopped"), "{log}");
    }
}

/// One connection, on which the first job has prepared the statements: of the second, only one answer is lost.
async fn api_with_one_connection() -> (Stack, TcpProxy) {
    let (proxy, _) = TcpProxy::before(&Servers::shared().await.database_url).await;
    let api = Stack::builder().relays(0).workers(0).database_through(&proxy);
    let stack = api.env("ACCEPT_CONCURRENCY", "1").start().await;
    assert_eq!(post(&stack, "first").await.status, 202);
    (stack, proxy)
}

/// Cuts the way back while the job is being committed, which waits for a lock. Then the lock goes, and the commit ends.
async fn lose_the_answer(stack: &Stack, proxy: &TcpProxy, holder: Transaction<'_, Postgres>) {
    let waiting = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND starts_with(query, '-- accept_jobs')";
    wait_until("the commit to wait", PATIENCE, async || stack.count(waiting).await == 1).await;
    proxy.set(Mode::Drop(Direction::ToClient));
    holder.rollback().await.expect("the lock goes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_a_commit_is_lost() {
    let (stack, proxy) = api_with_one_connection().await;
    let slow_commits = "
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON webhook_jobs DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION wait()";
    sqlx::raw_sql(slow_commits).execute(stack.pool()).await.expect("a trigger");
    let mut holder = stack.pool().begin().await.expect("a transaction");
    sqlx::query("SELECT pg_advisory_xact_lock(1)").execute(&mut *holder).await.expect("the lock");
    let cut = lose_the_answer(&stack, &proxy, holder);
    let (response, ()) = tokio::join!(post(&stack, "unknown"), cut);
    assert_unavailable(&response);
    assert_eq!(stack.jobs().await, 2, "it was committed, and nobody heard of it");

    proxy.set(Mode::Forward);
    wait_until("the same key to find the same job", PATIENCE, async || post(&stack, "unknown").await.status == 200)
        .await;
    assert_eq!(stack.jobs().await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_connection_waits_for_a_lock() {
    let (stack, _proxy) = api().await;
    let mut holder = stack.pool().begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE webhook_jobs IN ACCESS EXCLUSIVE MODE").execute(&mut *holder).await.expect("the lock");

    let keys: Vec<String> = (0..20).map(|number| format!("key-{number}")).collect();
    let started = Instant::now();
    let posts = futures_util::future::join_all(keys.iter().map(|key| post(&stack, key))).await;
    let answered = started.elapsed();
    report(&format!("all connections wait for a lock: 503 within {answered:?}"));
    assert!(answered < CONNECTION_LIMIT, "the answers took {answered:?}");
    posts.iter().for_each(assert_unavailable);
    assert_eq!(get(&stack, "/health").await.status, 200);

    holder.rollback().await.expect("the lock goes");
    assert_eq!(post(&stack, "key-0").await.status, 202);
    assert_eq!(stack.jobs().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_holds_one_key_and_the_others_pass() {
    let (stack, _proxy) = api().await;
    let mut holder = stack.pool().begin().await.expect("a transaction");
    let enqueue = "SELECT outhook.enqueue('http://example.com/', '{}', idempotency_key => 'held')";
    sqlx::query(enqueue).execute(&mut *holder).await.expect("it is enqueued");

    let keys: Vec<String> = (0..20).map(|number| format!("key-{number}")).chain(["held".to_owned()]).collect();
    let posts = futures_util::future::join_all(keys.iter().map(|key| post(&stack, key))).await;
    let (held, others) = posts.split_last().expect("there are 21");
    assert_unavailable(held);
    assert!(others.iter().all(|response| response.status == 202), "one key must hurt only itself");

    holder.rollback().await.expect("the key is free");
    assert_eq!(post(&stack, "held").await.status, 202);
}

/// Runs a statement that changes what the services' role may do.
async fn alter(stack: &Stack, statement: &'static str) {
    sqlx::query(statement).execute(stack.pool()).await.expect("a superuser may do it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_is_left_and_the_answer_comes_within_two_seconds() {
    let role = "no_connection_is_left";
    let stack = Stack::builder().relays(0).workers(0).database_role(role).start().await;
    assert_eq!(post(&stack, "before").await.status, 202);
    alter(&stack, "ALTER ROLE no_connection_is_left CONNECTION LIMIT 0").await;
    let ended = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'no_connection_is_left'";
    assert!(stack.count(ended).await > 0, "the api had no connection");

    let keys: Vec<String> = (0..20).map(|number| format!("key-{number}")).collect();
    let started = Instant::now();
    let posts = futures_util::future::join_all(keys.iter().map(|key| post(&stack, key))).await;
    let answered = started.elapsed();
    posts.iter().for_each(assert_unavailable);
    let started = Instant::now();
    assert_eq!(get(&stack, "/health").await.status, 200);
    report(&format!("no connection left: 503 within {answered:?}, health within {:?}", started.elapsed()));
    assert!(answered < CONNECTION_LIMIT, "the answers took {answered:?}");
    assert!(started.elapsed() < HEALTH_LIMIT, "the probe took {:?}", started.elapsed());

    alter(&stack, "ALTER ROLE no_connection_is_left CONNECTION LIMIT -1").await;
    wait_until("the api to accept again", PATIENCE, async || post(&stack, "key-0").await.status == 202).await;
}
