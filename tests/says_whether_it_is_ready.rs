//! `/ready` answers what a load balancer asks: would a webhook be accepted now? If not, it says why, and asking costs
//! nobody anything.

use futures_util::future::{join, join_all};
use harness::client::{Response, send};
use harness::{PATIENCE, Stack, Webhook, wait_until};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

const TARGET: &str = "http://127.0.0.1:9/hook";

async fn api() -> Stack {
    Stack::builder().relays(0).workers(0).env("ACCEPT_CONCURRENCY", "8").start().await
}

async fn ready(stack: &Stack) -> Response {
    send(stack.client.get("/ready")).await.expect("the api answers")
}

async fn run(stack: &Stack, statements: &str) {
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(stack.pool()).await.expect("a superuser may do it");
}

/// What is wrong, how it is mended, and what `/ready` says meanwhile.
const OBSTACLES: [(&str, &str, &str); 7] = [
    (
        "DO $$ BEGIN EXECUTE format('ALTER ROLE outhook_api_login IN DATABASE %I SET default_transaction_read_only = on',
                                    current_database()); END $$",
        "DO $$ BEGIN EXECUTE format('ALTER ROLE outhook_api_login IN DATABASE %I RESET default_transaction_read_only',
                                    current_database()); END $$",
        "read-only",
    ),
    (
        "REVOKE EXECUTE ON FUNCTION outhook.accept_jobs FROM outhook_api",
        "GRANT EXECUTE ON FUNCTION outhook.accept_jobs TO outhook_api",
        "lacks a right",
    ),
    (
        "REVOKE USAGE ON SCHEMA outhook FROM outhook_api",
        "GRANT USAGE ON SCHEMA outhook TO outhook_api",
        "lacks a right",
    ),
    (
        "ALTER FUNCTION outhook.accept_jobs RENAME TO accept_no_jobs",
        "ALTER FUNCTION outhook.accept_no_jobs RENAME TO accept_jobs",
        "a function of Outhook's is not there",
    ),
    (
        "ALTER TABLE webhook_jobs SET SCHEMA outhook",
        "ALTER TABLE outhook.webhook_jobs SET SCHEMA public",
        "not in the schema public",
    ),
    (
        "ALTER TABLE idempotency_keys RENAME COLUMN body_hash TO other_hash",
        "ALTER TABLE idempotency_keys RENAME COLUMN other_hash TO body_hash",
        "not in the schema public",
    ),
    (
        "SELECT setval('outbox_id_seq', 9223372036854775807)",
        "SELECT setval('outbox_id_seq', 1000)",
        "outbox_id_seq is used up",
    ),
];

/// What is set for a role holds for its next sessions.
const END_SESSIONS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'outhook-api%'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_says_why_no_webhook_can_be_accepted() {
    let stack = api().await;
    let post = async || {
        let request = stack.client.request(Webhook::to(TARGET)).header("Idempotency-Key", Uuid::new_v4().to_string());
        send(request).await.expect("the api answers").status
    };
    for (obstacle, mend, why) in OBSTACLES {
        run(&stack, obstacle).await;
        run(&stack, END_SESSIONS).await;
        wait_until(&format!("a 503 with {why:?} after {obstacle}"), PATIENCE, async || {
            let response = ready(&stack).await;
            response.status == 503 && response.json()["postgres"].as_str().is_some_and(|text| text.contains(why))
        })
        .await;
        assert_eq!(post().await, 503, "{obstacle}");

        run(&stack, mend).await;
        run(&stack, END_SESSIONS).await;
        wait_until(&format!("a 200 after {mend}"), PATIENCE, async || ready(&stack).await.status == 200).await;
        wait_until("a webhook to be accepted", PATIENCE, async || post().await == 202).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_writes_nothing_and_uses_no_number_up() {
    let stack = api().await;
    for _ in 0..20 {
        assert_eq!(ready(&stack).await.status, 200);
    }
    assert_eq!(stack.jobs().await, 0);
    assert_eq!(stack.count("SELECT last_value FROM outbox_id_seq WHERE NOT is_called").await, 1);
}

/// Connections of the api that wait for a lock.
const WAITING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'outhook-api%' AND wait_event_type = 'Lock'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_ask_one_connection_at_most_is_busy_with_it() {
    let stack = api().await;
    let mut holder = stack.pool().begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE webhook_jobs IN ACCESS EXCLUSIVE MODE").execute(&mut *holder).await.expect("the lock");
    let asked = join_all((0..50).map(|_| ready(&stack)));
    let watched = async {
        let mut most = 0;
        wait_until("the question to wait", PATIENCE, async || stack.count(WAITING).await > 0).await;
        wait_until("the question to be given up", PATIENCE, async || {
            let waiting = stack.count(WAITING).await;
            most = most.max(waiting);
            waiting == 0
        })
        .await;
        most
    };
    let (answers, most) = join(asked, watched).await;
    assert_eq!(most, 1, "connections were busy with it");
    assert!(answers.iter().all(|answer| answer.status == 503 && answer.body.contains("locked")), "{answers:?}");
    holder.rollback().await.expect("the lock goes");
    assert_eq!(ready(&stack).await.status, 200);
}
