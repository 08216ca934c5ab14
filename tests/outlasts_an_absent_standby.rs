//! While a synchronous standby is away, no commit ends. Callers hear so, `/ready` too, and no more of Postgres'
//! connections wait than there are for it, however long it lasts and whoever calls.

use futures_util::future::join_all;
use harness::client::{Response, send};
use harness::servers::Server;
use harness::{PATIENCE, Servers, Stack, report, wait_until};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

/// Connections of the api that accept (`ACCEPT_CONCURRENCY`), and those that change what was accepted.
const BOUND: i64 = 2 + 2;

/// What would be three times the bound, if each round left behind what it began.
const ROUNDS: usize = 6;

/// Connections of the api whose commit waits for a standby.
const WAITING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'outhook-api%' AND wait_event = 'SyncRep'";

/// Whose word commits wait for: a standby's of this name; nobody's, if there is none.
async fn wait_for_standby(stack: &Stack, name: &str) {
    let set = AssertSqlSafe(format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'"));
    sqlx::raw_sql(set).execute(stack.pool()).await.expect("a superuser may do it");
    sqlx::query("SELECT pg_reload_conf()").execute(stack.pool()).await.expect("a superuser may do it");
    wait_until("it to hold", PATIENCE, async || {
        let shown: String =
            sqlx::query_scalar("SHOW synchronous_standby_names").fetch_one(stack.pool()).await.expect("a setting");
        shown == name
    })
    .await;
}

async fn post(stack: &Stack, key: &str) -> Response {
    let request = stack.client.request(stack.webhook("")).header("Idempotency-Key", key);
    send(request).await.expect("the api answers")
}

async fn cancel(stack: &Stack, job_id: Uuid) -> Response {
    let request = stack.client.delete(job_id).bearer_auth(stack.client.api_token());
    send(request).await.expect("the api answers")
}

async fn ready(stack: &Stack) -> Response {
    send(stack.client.get("/ready")).await.expect("the api answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_connections_wait_for_a_standby_than_there_are_for_it() {
    let postgres = Servers::private_only(Server::Postgres).await;
    let builder = Stack::builder().relays(0).workers(0);
    let mut stack = builder.start_between(&postgres, Servers::shared().await).await;
    let mut jobs = Vec::new();
    for number in 0..ROUNDS {
        jobs.push(post(&stack, &format!("before-{number}")).await.job_id());
    }
    wait_for_standby(&stack, "nobody").await;

    let mut most = 0;
    for (round, job_id) in jobs.iter().enumerate() {
        let keys = [0, 1].map(|number| format!("meanwhile-{round}-{number}"));
        let posts = join_all(keys.iter().map(|key| post(&stack, key)));
        let (posts, cancelled) = tokio::join!(posts, cancel(&stack, *job_id));
        for response in posts.iter().chain([&cancelled]) {
            assert_eq!(response.status, 503, "{}", response.body);
        }
        most = most.max(stack.count(WAITING).await);
    }
    report(&format!("a standby is away: {most} connections of the api wait after {ROUNDS} rounds"));
    assert!(most <= BOUND, "{most} connections wait");
    let said = ready(&stack).await;
    assert_eq!(said.status, 503);
    assert!(said.body.contains("standby"), "{}", said.body);
    let read = stack.client.get(&format!("/webhooks/{}", jobs[0])).bearer_auth(stack.client.api_token());
    assert_eq!(send(read).await.expect("the api answers").status, 200, "what only reads goes on");

    wait_for_standby(&stack, "").await;
    wait_until("the api to be ready", PATIENCE, async || ready(&stack).await.status == 200).await;
    assert_eq!(stack.count(WAITING).await, 0);
    for round in 0..ROUNDS {
        assert!([200, 202].contains(&post(&stack, &format!("meanwhile-{round}-0")).await.status));
    }
    stack.start_relay().await;
    stack.start_worker().await;
    stack.wait_until_drained(PATIENCE).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_go_on_when_the_standby_is_back() {
    let postgres = Servers::private_only(Server::Postgres).await;
    let builder = Stack::builder().workers(0);
    let mut stack = builder.start_between(&postgres, Servers::shared().await).await;
    for _ in 0..4 {
        stack.post("{}", "").await;
    }
    wait_until("all to be published", PATIENCE, async || stack.published().await == 4).await;
    wait_for_standby(&stack, "nobody").await;
    stack.start_worker().await;
    wait_until("the worker to notice", PATIENCE, async || stack.workers[0].log().contains("cannot claim")).await;
    assert_eq!(stack.receiver.received().len(), 0, "something was posted that is not claimed for sure");
    wait_for_standby(&stack, "").await;
    stack.wait_until_drained(PATIENCE).await;
    stack.finish().await;
}
