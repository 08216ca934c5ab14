//! Postgres may roll a statement back because another one was in its way, by a deadlock or a serialization
//! failure: it is tried again, so many times at most, and nothing is lost.

use harness::load::Burst;
use harness::{PATIENCE, Stack, report};
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
async fn deliver_through(test: &'static str, event: &str) -> Stack {
    let stack = Stack::builder(test).start().await;
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
    let stack = deliver_through("accepting_is_rolled_back", "INSERT ON webhook_jobs").await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claiming_and_settling_are_rolled_back_and_tried_again() {
    let stack = deliver_through("claiming_is_rolled_back", "UPDATE ON webhook_jobs").await;
    assert_eq!(stack.receiver.received().len(), WEBHOOKS, "an attempt was made twice");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marking_is_rolled_back_and_published_again() {
    let stack = deliver_through("marking_is_rolled_back", "UPDATE ON outbox").await;
    assert_eq!(stack.receiver.received().len(), WEBHOOKS, "an attempt was made twice");
    stack.finish().await;
}
