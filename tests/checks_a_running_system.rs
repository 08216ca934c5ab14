//! `outhook check` says of a system under load that all is well, and finds what is not.

use harness::load::Burst;
use harness::{Program, Stack, processes};

/// What the checker prints, and its status.
async fn check(stack: &Stack, arguments: &[&str]) -> (String, Option<i32>) {
    let url = stack.url_of("reader");
    let environment = [("DATABASE_URL", url.as_str()), ("MAX_RETRIES", "5")];
    let output = processes::output(Program::Check, &environment, arguments).await;
    let said = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&said).into_owned(), output.status.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_is_well_under_load_and_at_rest() {
    let stack = Stack::start().await;
    let mut burst = Burst::start(&stack.client, &stack.receiver_url("?delay_ms=20&fail_times=1"), 600, 32);
    for look in 1..=3 {
        burst.wait_for(look * 150).await;
        let unfinished = stack.count("SELECT count(*) FROM outbox").await;
        let (said, status) = check(&stack, &[]).await;
        assert_eq!(status, Some(0), "{said}");
        assert!(unfinished > 0 && said.lines().all(|line| line.starts_with("ok ")), "{said}");
    }
    let (said, status) = check(&stack, &["--at-rest"]).await;
    assert_eq!(status, Some(1), "it is not at rest: {said}");
    assert!(said.contains("VIOLATED  I4: every job is finished"), "{said}");

    burst.outcome().await;
    stack.wait_until_drained(harness::PATIENCE).await;
    assert_eq!(check(&stack, &["--at-rest"]).await.1, Some(0));
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_broken_is_shown_with_its_rows() {
    let stack = Stack::builder().relays(1).workers(0).start().await;
    let id = stack.post("{}", "").await.job_id;
    sqlx::query("DELETE FROM outbox").execute(stack.pool()).await.expect("the row goes");
    let (said, status) = check(&stack, &[]).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains(&format!("job {id} is pending and has 0 outbox rows")), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_checked_is_no_violation() {
    let environment = [("DATABASE_URL", "postgres://outhook:secret@127.0.0.1:1/outhook")];
    let output = processes::output(Program::Check, &environment, &[]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.starts_with("outhook-check: Postgres: ") && !said.contains("secret"), "{said}");
}
