//! Postgres may roll a statement back because another one was in its way, by a deadlock or a serialization
//! failure: it is tried again, so many times at most, and nothing is lost.

use harness::load::Burst;
use harness::{PATIENCE, Stack, report};
use sqlx::AssertSqlSafe;

const WEBHOOKS: usize = 300;

/// What raises the errors: a trigger, whose sequence keeps counting through rollbacks. 40P01 is a deadlock,
/// 40001 a serialization failure.
const CONFLICTS: &str = "
    CREATE SEQUENCE harness.conflicts;
    CREATE FUNCTION harness.conflict() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        -- Every third statement, in turns; so the first retry passes.
        CASE nextval('harness.conflicts') % 6
            WHEN 0 THEN RAISE EXCEPTION 'injected' USING ERRCODE = '40P01';
            WHEN 3 THEN RAISE EXCEPTION 'injected' USING ERRCODE = '40001';
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

/// Delivers all, and returns how many statements were rolled back.
async fn deliver_through(test: &'static str, event: &str) -> (Stack, i64) {
    let stack = Stack::builder(test).start().await;
    inject(&stack, event).await;
    let outcome = Burst::start(&stack.client, &stack.receiver_url(""), WEBHOOKS, 8).outcome().await;
    stack.wait_until_drained(PATIENCE).await;
    let conflicts = stack.count("SELECT last_value / 3 FROM harness.conflicts").await;
    report(&format!("{conflicts} conflicts {event}: {outcome:?}"));
    assert!(conflicts > 0, "nothing was rolled back");
    assert_eq!((outcome.accepted, outcome.repeated), (WEBHOOKS, 0), "a caller noticed");
    (stack, conflicts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepting_is_rolled_back_and_tried_again() {
    let (stack, _) = deliver_through("accepting_is_rolled_back", "INSERT ON webhook_jobs").await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claiming_and_settling_are_rolled_back_and_tried_again() {
    let (stack, _) = deliver_through("claiming_is_rolled_back", "UPDATE ON webhook_jobs").await;
    assert_eq!(stack.receiver.received().len(), WEBHOOKS, "an attempt was made twice");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marking_is_rolled_back_and_published_again() {
    let (stack, _) = deliver_through("marking_is_rolled_back", "UPDATE ON outbox").await;
    assert_eq!(stack.receiver.received().len(), WEBHOOKS, "an attempt was made twice");
    stack.finish().await;
}
