//! Postgres' disk may fill up: callers hear 503, what was accepted stays, and all goes on by itself when
//! there is room again.

use std::time::Instant;

use harness::client::send;
use harness::load::Burst;
use harness::servers::Server;
use harness::small_disk::SmallDisk;
use harness::{PATIENCE, Servers, Stack, report, wait_for};
use sqlx::AssertSqlSafe;

const WEBHOOKS: usize = 1_000;

/// Puts all tables and indexes on the disk. The log of Postgres stays where it is: without room for that,
/// Postgres crashes, which is another test.
async fn move_to(stack: &Stack, disk: &SmallDisk) {
    let location = disk.directory().display();
    let statements = [
        format!("CREATE TABLESPACE small LOCATION '{location}'"),
        "ALTER TABLE ALL IN TABLESPACE pg_default SET TABLESPACE small".to_owned(),
        "ALTER INDEX ALL IN TABLESPACE pg_default SET TABLESPACE small".to_owned(),
    ];
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(stack.pool()).await.expect("a superuser may do it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_has_no_space_left_and_gets_some_again() {
    let Some(disk) = SmallDisk::mount("no_space_left") else {
        report("NOT TESTED: a full disk; mounting one is not allowed here");
        return;
    };
    let postgres = Servers::private_only(Server::Postgres).await;
    let stack = Stack::builder().start_between(&postgres, Servers::shared().await).await;
    move_to(&stack, &disk).await;
    let mut burst = Burst::start(&stack.client, &stack.receiver_url("?delay_ms=5"), WEBHOOKS, 16);
    burst.wait_for(WEBHOOKS / 4).await;
    disk.fill();

    let refused = wait_for("a 503", PATIENCE, async || {
        let request = stack.client.request(stack.webhook(""));
        let response = send(request.header("Idempotency-Key", "meanwhile")).await.expect("the api answers");
        (response.status == 503).then_some(response)
    })
    .await;
    assert_eq!(refused.headers["retry-after"], "1");
    stack.apis[0].says("No space left on device").await;
    assert_eq!(send(stack.client.get("/health")).await.expect("the api answers").status, 200);

    disk.make_room();
    let healed = Instant::now();
    let outcome = burst.outcome().await;
    stack.wait_until_drained(PATIENCE).await;
    report(&format!("disk full: {outcome:?}, drained {:?} after there was room", healed.elapsed()));
    assert_eq!(outcome.accepted + outcome.known, WEBHOOKS);
    stack.finish().await;
}
