//! Postgres may crash, and any of its sessions may be killed: callers hear 503 meanwhile, the services come
//! back by themselves, and nothing that was accepted is lost.

use std::time::{Duration, Instant};

use harness::client::send;
use harness::load::Burst;
use harness::servers::Server;
use harness::{PATIENCE, Servers, Stack, report, wait_for, wait_until};

const WEBHOOKS: usize = 1_200;

/// The services' backoff (1 s), leases of what was under way (16 s until another looks), perhaps of two attempts, and a
/// busy machine.
const RECOVERY_LIMIT: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_crashes_under_load_and_starts_again() {
    let postgres = Servers::private_only(Server::Postgres).await;
    let stack = Stack::builder().start_between(&postgres, Servers::shared().await).await;
    let mut burst = Burst::start(&stack.client, &stack.receiver_url("?delay_ms=20"), WEBHOOKS, 16);
    burst.wait_for(WEBHOOKS / 3).await;
    postgres.kill(Server::Postgres).await;

    let request = stack.client.request(stack.webhook("")).header("Idempotency-Key", "meanwhile");
    let meanwhile = send(request).await.expect("the api answers");
    assert_eq!((meanwhile.status, &meanwhile.headers["retry-after"]), (503, &"1".parse().expect("a value")));
    let health = send(stack.client.get("/health")).await.expect("the api answers");
    assert_eq!(health.status, 200, "the process lives");

    postgres.start_again(Server::Postgres).await;
    let healed = Instant::now();
    let outcome = burst.outcome().await;
    stack.wait_until_drained(RECOVERY_LIMIT).await;

    let unknown = stack.unknown_attempts().await;
    report(&format!(
        "Postgres crashed: {outcome:?}, {unknown} unknown, drained {:?} after the start",
        healed.elapsed()
    ));
    assert_eq!(outcome.accepted + outcome.known, WEBHOOKS);
    assert!(outcome.repeated > 0, "no caller noticed");
    stack.finish().await;
}

/// Ends the sessions of one service, and returns how many there were.
async fn terminate(stack: &Stack, application: &str) -> i64 {
    let terminated = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = $1";
    let terminated = sqlx::query_scalar(terminated).bind(application).fetch_one(stack.pool()).await;
    terminated.expect("a superuser may end sessions")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_killed_under_load() {
    let stack = Stack::start().await;
    let mut burst = Burst::start(&stack.client, &stack.receiver_url("?delay_ms=10"), WEBHOOKS, 16);
    let services = ["outhook-api accept", "outhook-relay", "outhook-worker", "outhook-relay listen"];
    for (index, application) in services.into_iter().enumerate() {
        burst.wait_for((index + 1) * WEBHOOKS / (services.len() + 1)).await;
        assert!(terminate(&stack, application).await > 0, "{application} had no session");
    }
    let outcome = burst.outcome().await;
    stack.wait_until_drained(RECOVERY_LIMIT).await;

    let reconnects = stack.relays[0].counter("outhook_relay_reconnects_total").await;
    report(&format!("sessions killed: {outcome:?}, {reconnects} reconnects of the relay"));
    assert_eq!(outcome.accepted + outcome.known, WEBHOOKS);
    assert!(reconnects >= 1.0, "the relay did not notice");
    stack.finish().await;
}

/// The session that listens for notifications, once it does: its process and when it began.
async fn listener(stack: &Stack) -> Option<(i32, time::OffsetDateTime)> {
    let listening = "SELECT pid, backend_start FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'outhook-relay listen' AND query LIKE 'LISTEN%'";
    sqlx::query_as(listening).fetch_optional(stack.pool()).await.expect("sessions can be listed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_listening_session_is_killed_and_the_poll_finds_what_it_missed() {
    let stack = Stack::start().await;
    let (first, _) = wait_for("a listener", PATIENCE, async || listener(&stack).await).await;
    assert_eq!(terminate(&stack, "outhook-relay listen").await, 1);
    let another = async || listener(&stack).await.filter(|(pid, _)| *pid != first);
    let (second, _) = wait_for("another listener", PATIENCE, another).await;

    // It has just begun, so it looks after its connection in 5 s: until then nobody listens.
    assert_eq!(terminate(&stack, "outhook-relay listen").await, 1);
    wait_until("nobody to listen", PATIENCE, async || listener(&stack).await.is_none()).await;
    stack.post("{}", "").await;
    stack.wait_until_drained(PATIENCE).await;
    let another = async || listener(&stack).await.filter(|(pid, _)| *pid != second);
    let (_, began) = wait_for("a third listener", PATIENCE, another).await;

    let published: time::OffsetDateTime = sqlx::query_scalar("SELECT at FROM harness.publications")
        .fetch_one(stack.pool())
        .await
        .expect("one publication");
    assert!(published < began, "published at {published}, after somebody listened again at {began}");
    stack.finish().await;
}
