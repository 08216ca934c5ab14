//! Postgres may roll a statement back because another one was in its way, by a deadlock or a serialization
//! failure: it is tried again, so many times at most, and nothing is lost. Nor is it when Postgres refuses what a statement
//! would write.

use harness::load::Burst;
use harness::{PATIENCE, Stack, report, wait_until};
use sqlx::AssertSqlSafe;

const WEBHOOKS: usize = 300;

/// What raises the errors: a trigger, whose sequences keep counting through rollbacks. 40P01 is a deadlock,
/// 40001 a serialization failure.
const CONFLICTS: &str = "
    CREATE SEQUENCE harness.statements;
    CREATE SEQUENCE harness.conflicts;
    CREATE FUNCTION harness.conflict() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        -- Two statements of seven, so that no loop of the services falls into step with it.
        CASE nextval('harness.statements') % 7
            WHEN 0 THEN RAISE EXCEPTION 'conflict %', nextval('harness.conflicts') USING ERRCODE = '40P01';
            WHEN 3 THEN RAISE EXCEPTION 'conflict %', nextval('harness.conflicts') USING ERRCODE = '40001';
            ELSE RETURN NULL;
        END CASE;
    END;
    $$;
";

async fn inject(stack: &Stack, event: &str) {
    let trigger =
        format!("CREATE TRIGGER conflict BEFORE {event} FOR EACH STATEMENT EXECUTE FUNCTION harness.conflict()");
    for statement in [CONFLICTS, &trigger] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(stack.pool()).await.expect("the trigger is made");
    }
}

/// Delivers all while statements are rolled back.
async fn deliver_through(event: &str) -> Stack {
    let stack = Stack::start().await;
    inject(&stack, event).await;
    let outcome = Burst::start(&stack.client, &stack.receiver_url(""), WEBHOOKS, 8).outcome().await;
    stack.wait_until_drained(PATIENCE).await;
    let conflicts = stack.count("SELECT last_value FROM harness.conflicts WHERE is_called").await;
    report(&format!("{conflicts} conflicts {event}: {outcome:?}"));
    assert!(conflicts > 1, "nothing was rolled back");
    assert_eq!((outcome.accepted, outcome.repeated), (WEBHOOKS, 0), "a caller noticed");
    stack
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepting_is_rolled_back_and_tried_again() {
    let stack = deliver_through("INSERT ON webhook_jobs").await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claiming_and_settling_are_rolled_back_and_tried_again() {
    let stack = deliver_through("UPDATE ON webhook_jobs").await;
    assert_eq!(stack.receiver.received().len(), WEBHOOKS, "an attempt was made twice");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marking_is_rolled_back_and_published_again() {
    let stack = deliver_through("UPDATE ON outbox").await;
    assert_eq!(stack.receiver.received().len(), WEBHOOKS, "an attempt was made twice");
    stack.finish().await;
}

/// The record of one attempt is refused, and not even a line can be left for it; what is settled beside it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_refused_is_one_of_a_lost_worker_in_the_end() {
    let stack = Stack::builder().env("HTTP_CLIENT_TIMEOUT_SEC", "1").start().await;
    let run = async |statements: &'static str| sqlx::raw_sql(statements).execute(stack.pool()).await;
    run("ALTER TABLE webhook_attempts ADD CONSTRAINT refused CHECK (outcome <> 'success');
         REVOKE INSERT (outbox_id, attempt) ON outbox_checks FROM outhook_worker")
    .await
    .expect("the owner may");
    let refused = stack.post("{}", "").await.job_id;
    let other = stack.client.post_webhook(&stack.webhook("?status=500").max_attempts(1)).await.job_id;
    let recorded = "SELECT count(*) FROM webhook_attempts WHERE outcome = 'failed'";
    wait_until("the other's record", PATIENCE, async || stack.count(recorded).await == 1).await;
    assert_eq!(stack.client.job(other).await["status"], "failed");
    wait_until("the line to be refused", PATIENCE, async || {
        stack.workers[0].log().contains("cannot put a row on the list of those to look at again")
    })
    .await;
    run("ALTER TABLE webhook_attempts DROP CONSTRAINT refused;
         GRANT INSERT (outbox_id, attempt) ON outbox_checks TO outhook_worker")
    .await
    .expect("the owner may");
    stack.wait_until_drained(PATIENCE).await;

    let job = stack.client.job(refused).await;
    assert_eq!((&job["attempts"][0]["outcome"], &job["status"]), (&"unknown".into(), &"success".into()), "{job}");
    assert_eq!(stack.deliveries(refused).len(), 2);
    stack.finish().await;
}
