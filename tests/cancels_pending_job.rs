//! A job that nobody is delivering can be cancelled, over HTTP and from SQL: it is never delivered. Any
//! other is left alone.

use std::time::Duration;

use harness::client::send;
use harness::{PATIENCE, Stack, report, wait_until};
use outbox::service::clock;
use sqlx::PgPool;
use tokio::task::JoinSet;
use uuid::Uuid;

/// Posts a webhook that is due in an hour.
async fn post_scheduled(stack: &Stack) -> Uuid {
    stack.client.post_webhook(&stack.webhook("").deliver_at(clock::now() + Duration::from_hours(1))).await.job_id
}

async fn cancel_in_sql(pool: &PgPool, id: Uuid) -> Option<bool> {
    sqlx::query_scalar("SELECT outhook.cancel($1)").bind(id).fetch_one(pool).await.expect("it is answered")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_job_is_withdrawn() {
    let stack = Stack::start().await;
    let id = post_scheduled(&stack).await;
    // The second time as if the first answer had been lost.
    for _ in 0..2 {
        let response = stack.client.cancel(id).await;
        assert_eq!(response.status, 200, "{}", response.body);
        let body = response.json();
        assert_eq!((response.job_id(), &body["status"]), (id, &"cancelled".into()), "{body}");
        assert!(body["message"].is_string(), "{body}");
    }
    let job = stack.client.job(id).await;
    assert_eq!((&job["status"], &job["error"], job["outbox"].is_null()), (&"cancelled".into(), &"".into(), true));
    assert_eq!(stack.receiver.received().len(), 0);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_waits_for_its_retry_is_withdrawn_and_its_message_dropped() {
    let stack = Stack::start().await;
    let id = stack.post("{}", "?status=503&retry_after=3600").await.job_id;
    let waiting = "SELECT count(*) FROM webhook_jobs WHERE status = 'pending' AND error <> ''";
    wait_until("the first attempt's record", PATIENCE, async || stack.count(waiting).await == 1).await;
    let outbox_id = sqlx::query_scalar("SELECT outbox_id FROM webhook_jobs").fetch_one(stack.pool()).await;
    assert_eq!(stack.client.cancel(id).await.status, 200);
    // What the relay would have published a moment before the cancel.
    let message = outbox::broker::task::Task::new(id, 1, outbox_id.expect("the job has its row"), None);
    stack.broker.publish(&message.encode()).await;
    wait_until("the message to be refused", PATIENCE, async || {
        stack.workers[0].counter("outhook_worker_refused_total").await > 0.0
    })
    .await;

    let job = stack.client.job(id).await;
    assert_eq!((&job["status"], &job["error"], &job["retry_count"]), (&"cancelled".into(), &"".into(), &1.into()));
    assert_eq!(stack.deliveries(id).len(), 1);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_being_delivered_or_has_ended_is_left_alone() {
    let stack = Stack::start().await;
    let id = stack.post("{}", "?delay_ms=1500").await.job_id;
    stack.wait_for_deliveries(1).await;
    let too_late = stack.client.cancel(id).await;
    assert_eq!((too_late.status, &too_late.json()["error"]["code"]), (409, &"too_late".into()));
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.client.cancel(id).await.status, 409);
    assert_eq!(stack.client.job(id).await["status"], "success");

    assert_eq!(stack.client.cancel(Uuid::now_v7()).await.status, 404);
    for request in [stack.client.delete(id), stack.client.delete(id).bearer_auth("wrong")] {
        assert_eq!(send(request).await.expect("the api answers").status, 401);
    }
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_cancels_in_its_own_transaction() {
    let stack = Stack::start().await;
    let id = post_scheduled(&stack).await;
    let mut transaction = stack.pool().begin().await.expect("a transaction begins");
    let cancelled = sqlx::query_scalar("SELECT outhook.cancel($1)").bind(id).fetch_one(&mut *transaction).await;
    assert_eq!(cancelled.ok(), Some(true));
    transaction.rollback().await.expect("a transaction rolls back");
    assert_eq!(stack.client.job(id).await["status"], "pending");

    assert_eq!(cancel_in_sql(stack.pool(), id).await, Some(true));
    assert_eq!(cancel_in_sql(stack.pool(), id).await, Some(true), "it is cancelled already");
    assert_eq!(cancel_in_sql(stack.pool(), Uuid::now_v7()).await, None);
    let delivered = stack.post("{}", "").await.job_id;
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(cancel_in_sql(stack.pool(), delivered).await, Some(false));
    stack.finish().await;
}

/// Posts a webhook, lets it come some way, and cancels it. Returns its job if that came in time.
async fn post_and_cancel(client: harness::Client, url: String, wait: Duration) -> Option<Uuid> {
    let id = client.post("{}", &url).await.job_id;
    // Not waiting for anything: the point is to come at different moments.
    tokio::time::sleep(wait).await;
    loop {
        let response = client.cancel(id).await;
        match response.status {
            200 => return Some(id),
            409 => return None,
            status => assert_eq!(status, 503, "{}", response.body),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_that_races_with_the_claim_wins_or_loses_whole() {
    const ROUNDS: u64 = 18;
    const AT_ONCE: u64 = 32;
    let stack = Stack::builder().workers(2).start().await;
    let mut cancelled = Vec::new();
    for round in 0..ROUNDS {
        let mut callers = JoinSet::new();
        for caller in 0..AT_ONCE {
            let wait = Duration::from_millis((round + caller) % 16 * 2);
            callers.spawn(post_and_cancel(stack.client.clone(), stack.receiver_url(""), wait));
        }
        cancelled.extend(callers.join_all().await.into_iter().flatten());
    }
    stack.wait_until_drained(PATIENCE).await;

    let accepted = stack.client.accepted().len();
    let jobs = stack.count("SELECT count(*) FROM webhook_jobs WHERE status = 'cancelled'").await;
    report(&format!(
        "cancel: {accepted} accepted, {} cancelled, {} delivered",
        cancelled.len(),
        accepted - cancelled.len()
    ));
    assert_eq!(usize::try_from(jobs), Ok(cancelled.len()));
    assert!(!cancelled.is_empty() && cancelled.len() < accepted, "nobody raced: {} of {accepted}", cancelled.len());
    for id in cancelled {
        assert_eq!(stack.deliveries(id).len(), 0, "job {id} was cancelled and delivered");
    }
    assert_eq!(stack.receiver.received().len(), accepted - usize::try_from(jobs).expect("a count"));
    stack.finish().await;
}
