//! Every metric is described, to Prometheus' liking, exists from the start, and stands in docs/operating.md; and what a person
//! on call looks at says what is the case.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use harness::client::fetch;
use harness::{PATIENCE, Process, Stack, wait_until};

/// The names that a page of metrics says the type of.
fn described(page: &str) -> BTreeSet<String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    types.map(ToOwned::to_owned).collect()
}

/// The names in the tables of docs/operating.md.
fn documented() -> BTreeSet<String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating.md");
    let page = std::fs::read_to_string(page).expect("it is there");
    page.lines()
        .filter_map(|line| Some(line.strip_prefix("| `outhook_")?.split_once('`')?.0))
        .map(|name| format!("outhook_{name}"))
        .collect()
}

/// The names that stand in the sources of the programs where something is counted.
fn counted() -> BTreeSet<String> {
    counted_by(&["counter", "gauge", "histogram"])
}

/// The same, of these kinds.
pub(crate) fn counted_by(kinds: &[&str]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for program in ["outbox", "traces", "api", "relay", "worker"] {
        read_names(
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is in one").join(program).join("src").as_path(),
            kinds,
            &mut names,
        );
    }
    names
}

fn read_names(directory: &Path, kinds: &[&str], names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).expect("it is there") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            read_names(&path, kinds, names);
            continue;
        }
        let source = std::fs::read_to_string(&path).expect("it is text");
        for kind in kinds {
            let start = format!("{kind}!(\"");
            names.extend(source.split(&start).skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
        }
    }
}

/// What Prometheus' own tool has to say against it.
fn objections(page: &str) -> String {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("scripts/test installs promtool");
    promtool.stdin.take().expect("it is piped").write_all(page.as_bytes()).expect("it reads");
    let output = promtool.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    format!("{}{}", if output.status.success() { "" } else { "failed: " }, String::from_utf8_lossy(&said))
}

async fn page_of(process: &Process) -> String {
    fetch(&process.metrics_url("/metrics")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_what_the_page_says_and_what_prometheus_likes() {
    let stack = Stack::start().await;
    let mut scraped = BTreeSet::new();
    for process in [&stack.apis[0], &stack.relays[0], &stack.workers[0]] {
        let page = page_of(process).await;
        assert_eq!(objections(&page), "", "{}", process.name());
        let names = described(&page);
        for name in &names {
            assert!(page.contains(&format!("# HELP {name} ")), "{name} is not described");
        }
        scraped.extend(names);
    }
    assert_eq!(scraped, documented(), "scraped before anything happened, and documented");
    assert_eq!(counted(), scraped, "counted by a name that stands where it is counted, and described");
    let page = page_of(&stack.workers[0]).await;
    for series in ["outhook_worker_takeovers_total 0", r#"outhook_worker_attempts_total{outcome="failed"} 0"#] {
        assert!(page.lines().any(|line| line == series), "{series} is not there from the start");
    }
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_somebody_holds_is_seen_by_its_age() {
    let mut stack = Stack::builder().relays(0).workers(0).start().await;
    let age = "outhook_relay_oldest_due_age_seconds";
    stack.enqueue(&stack.receiver_url(""), "{}", 1).await;
    let mut held = stack.pool().begin().await.expect("Postgres answers");
    sqlx::query("SELECT FROM outbox FOR UPDATE").execute(&mut *held).await.expect("it can be locked");
    stack.start_relay().await;
    stack.start_worker().await;
    wait_until("it to be seen", PATIENCE, async || stack.relays[0].counter(age).await >= 2.0).await;
    held.rollback().await.expect("Postgres answers");
    stack.wait_until_drained(PATIENCE).await;
    wait_until("it to be seen no more", PATIENCE, async || stack.relays[0].counter(age).await <= 0.0).await;
    stack.finish().await;
}

/// The rows of the outbox in each state, as the relay has counted them.
async fn rows_by_state(stack: &Stack) -> [u64; 5] {
    let page = page_of(&stack.relays[0]).await;
    ["due", "published", "scheduled", "held", "ordered"].map(|state| {
        let series = format!("outhook_relay_rows{{state=\"{state}\"}} ");
        let count = page.lines().find_map(|line| line.strip_prefix(&series));
        count.expect("it is there from the start").parse().expect("it is a number")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_counted_by_what_they_wait_for() {
    let mut stack = Stack::builder().relays(0).workers(0).start().await;
    let mut held = stack.pool().begin().await.expect("Postgres answers");
    stack.enqueue(&stack.receiver_url(""), "{}", 1).await;
    sqlx::query("SELECT FROM outbox FOR UPDATE").execute(&mut *held).await.expect("it can be locked");
    stack.start_relay().await;
    // None is due besides the one that is held, which no relay takes.
    for (count, enqueue) in [
        (2, "outhook.enqueue($1, '{}', deliver_at => now() + interval '1 hour')"),
        (4, "outhook.enqueue($1, '{}', ordering_key => 'a')"),
        (5, "outhook.enqueue('http://sick.example', '{}')"),
    ] {
        let sick = "INSERT INTO destinations (destination, state, hold_until)
            VALUES ('http://sick.example', 'open', now() + interval '1 hour') ON CONFLICT DO NOTHING";
        sqlx::query(sick).execute(stack.pool()).await.expect("Postgres answers");
        let enqueue = format!("SELECT count({enqueue}) FROM generate_series(1, {count}) WHERE $1 <> ''");
        let enqueue = sqlx::query(sqlx::AssertSqlSafe(enqueue)).bind(stack.receiver_url(""));
        enqueue.execute(stack.pool()).await.expect("they are accepted");
    }
    stack.wake().await;
    let (mut seen, expected) = ([0; 5], [1, 1, 2, 5, 3]);
    wait_until("each to be counted once", PATIENCE, async || {
        seen = rows_by_state(&stack).await;
        seen == expected
    })
    .await;
    held.rollback().await.expect("Postgres answers");
    stack.cancel_the_rest().await;
    wait_until("none to be counted", PATIENCE, async || rows_by_state(&stack).await == [0; 5]).await;
    stack.abandon().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_webhook_took_and_what_it_found_is_seen() {
    let stack = Stack::builder().env("BREAKER_FAILURES", "1").env("BREAKER_COOLDOWN_SEC", "3600");
    let stack = stack.env("BREAKER_COOLDOWN_MAX_SEC", "3600").start().await;
    let (relay, worker) = (&stack.relays[0], &stack.workers[0]);
    stack.post("{}", "?delay_ms=300").await;
    wait_until("the delivery to be under way", PATIENCE, async || {
        worker.counter("outhook_worker_deliveries").await > 0.0
    })
    .await;
    stack.wait_until_drained(PATIENCE).await;
    wait_until("it to be counted", PATIENCE, async || {
        worker.counter("outhook_worker_delivery_seconds_count").await > 0.0
            && worker.counter("outhook_worker_deliveries").await < 1.0
    })
    .await;
    let took = worker.counter("outhook_worker_delivery_seconds_sum").await;
    assert!((0.3..60.0).contains(&took), "it took {took} s");

    let open = r#"outhook_relay_sick_destinations{state="open"}"#;
    assert!(relay.series(open).await < 1.0);
    stack.post("{}", "?status=500").await;
    wait_until("the breaker to be seen open", PATIENCE, async || relay.series(open).await > 0.0).await;
    stack.cancel_the_rest().await;
    sqlx::query("DELETE FROM destinations").execute(stack.pool()).await.expect("they can be forgotten");
    wait_until("it to be seen well", PATIENCE, async || relay.series(open).await < 1.0).await;
    stack.finish().await;
}
