//! An idempotency key holds for `IDEMPOTENCY_DAYS` and no longer, however many there are, and forgetting them delays nobody.

use std::time::Duration;

use harness::client::{Response, body, send};
use harness::database::Database;
use harness::latency::{median, one_at_a_time};
use harness::signing::{github_signature, standard_headers};
use harness::{PATIENCE, Servers, Stack, report, wait_until};
use outbox::job::keys::{Forgotten, forget_keys};
use sqlx::PgConnection;
use tokio::time::Instant;
use tokio_postgres::NoTls;

const SECRET: &str = "a secret of 24 bytes or so";

/// What a webhook takes at the most, in the middle of some, when nothing is in its way.
const AT_ONCE: Duration = Duration::from_millis(150);

const KEYS: &str = "SELECT count(*) FROM idempotency_keys";

/// So many keys that are this old, each of its own moment.
const OLD: &str = "INSERT INTO idempotency_keys (created_at, job_id, is_signed, body_hash, key)
    SELECT now() - make_interval(days => $2) - make_interval(secs => n / 1000.0), gen_random_uuid(), false, sha256('{}'), 'old ' || n
    FROM generate_series(1, $1) AS n";

/// Makes a key and its job as old as that.
const AGE: &str = "WITH aged AS (
        UPDATE idempotency_keys SET created_at = now() - $2::interval WHERE key = $1 RETURNING job_id
    )
    UPDATE webhook_jobs SET created_at = now() - $2::interval WHERE id IN (SELECT job_id FROM aged)";

async fn make_old(connection: &mut PgConnection, count: i32, days: i32) {
    sqlx::query(OLD).bind(count).bind(days).execute(connection).await.expect("the owner may do it");
}

/// Posts a webhook with such a key, or signed with such an id.
async fn post(stack: &Stack, key: Option<&str>, signed_id: Option<&str>) -> Response {
    let text = body("{}", &stack.receiver_url(""), "");
    let headers = if let Some(id) = signed_id {
        let now = outbox::service::clock::now().unix_timestamp().to_string();
        standard_headers(SECRET, id, &now, &text).to_vec()
    } else {
        vec![("X-Signature", github_signature(SECRET, text.as_bytes()))]
    };
    let request = stack.client.unsigned_request().body(text);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
    let request = key.into_iter().fold(request, |request, key| request.header("Idempotency-Key", key));
    send(request).await.expect("the api answers")
}

async fn enqueue(stack: &Stack, key: &str) -> uuid::Uuid {
    let statement = "SELECT outhook.enqueue($1, '{}', idempotency_key => $2)";
    let enqueued = sqlx::query_scalar(statement).bind(stack.receiver_url("")).bind(key).fetch_one(stack.pool()).await;
    enqueued.expect("it is enqueued")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_makes_another_job_after_its_days_and_not_before() {
    let stack = Stack::builder().env("IDEMPOTENCY_DAYS", "2").env("HMAC_SECRET", SECRET).start().await;
    let first = [
        post(&stack, None, Some("old id")).await,
        post(&stack, Some("young key"), Some("id of a young key")).await,
        post(&stack, Some("old key"), Some("young id")).await,
    ];
    assert_eq!(first.iter().map(|response| response.status).collect::<Vec<_>>(), [202; 3]);
    let (old, young) = (enqueue(&stack, "old in SQL").await, enqueue(&stack, "young in SQL").await);
    for (key, age) in [
        // The id and the key that stands in its place.
        ("old id", "2 days 1 minute"),
        ("young key", "1 day 23 hours 58 minutes"),
        ("old key", "2 days 1 minute"),
        ("old in SQL", "2 days 1 minute"),
        ("young in SQL", "1 day 23 hours 58 minutes"),
    ] {
        sqlx::query(AGE).bind(key).bind(age).execute(stack.pool()).await.expect("the owner may do it");
    }
    let expired = "SELECT count(*) FROM idempotency_keys WHERE created_at < now() - interval '2 days'";
    wait_until("the old keys to be forgotten", PATIENCE, async || stack.count(expired).await == 0).await;
    assert_eq!(stack.count(KEYS).await, 4, "a young key was forgotten");

    assert_eq!(post(&stack, None, Some("old id")).await.status, 202, "a job of its own");
    let known = post(&stack, Some("young key"), None).await;
    assert_eq!((known.status, known.job_id()), (200, first[1].job_id()));
    let by_id = post(&stack, Some("old key"), Some("young id")).await;
    assert_eq!((by_id.status, by_id.job_id()), (200, first[2].job_id()), "its id holds on");
    assert_eq!(post(&stack, Some("old key"), None).await.status, 202, "a job of its own");
    assert_ne!(enqueue(&stack, "old in SQL").await, old);
    assert_eq!(enqueue(&stack, "young in SQL").await, young);
    let forgotten = stack.relays[0].counter("outhook_relay_keys_forgotten_total").await;
    assert!(forgotten >= 4.0, "{forgotten} were counted");
    stack.wait_until_drained(PATIENCE).await;
    // A key that was used again is on two jobs, and that is in order.
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_old_keys_delay_nobody() {
    const OLD_KEYS: i32 = 100_000;
    let stack = Stack::builder().start().await;
    // Whoever leaves a transaction open keeps Postgres from tidying up.
    let mut reader = stack.pool().acquire().await.expect("Postgres is there").detach();
    for statement in ["BEGIN ISOLATION LEVEL REPEATABLE READ", KEYS] {
        sqlx::query(statement).execute(&mut reader).await.expect("it is read");
    }
    make_old(&mut stack.pool().acquire().await.expect("Postgres is there"), OLD_KEYS, 31).await;
    let began = Instant::now();
    let (taken, ()) = tokio::join!(one_at_a_time(&stack, 10, Duration::ZERO), async {
        wait_until("the keys to be forgotten", PATIENCE, async || stack.count(KEYS).await == 0).await;
        report(&format!("{OLD_KEYS} old keys: forgotten in {:.1?}", began.elapsed()));
    });
    report(&format!("a webhook meanwhile: median {:.1?}", median(&taken)));
    assert!(median(&taken) < AT_ONCE, "{taken:?}");
    sqlx::query("COMMIT").execute(&mut reader).await.expect("it ends");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_somebody_holds_are_stepped_over_and_found_again() {
    const HELD: i32 = 3_000;
    let mut stack = Stack::builder().relays(0).workers(0).start().await;
    let mut connection = stack.pool().acquire().await.expect("Postgres is there").detach();
    make_old(&mut connection, HELD, 400).await;
    // The oldest ones, more than a relay goes through at once.
    let mut holder = stack.pool().begin().await.expect("a transaction begins");
    sqlx::query("SELECT FROM idempotency_keys FOR UPDATE").execute(&mut *holder).await.expect("nobody holds them");
    let free = "INSERT INTO idempotency_keys (created_at, job_id, is_signed, body_hash, key)
        SELECT created_at + interval '1 day', job_id, true, body_hash, key FROM idempotency_keys";
    sqlx::query(free).execute(&mut connection).await.expect("the owner may do it");
    stack.start_relay().await;
    stack.start_worker().await;
    wait_until("the free keys to be forgotten", PATIENCE, async || stack.count(KEYS).await == i64::from(HELD)).await;
    stack.post("{}", "").await;
    stack.wait_until_drained(PATIENCE).await;
    holder.rollback().await.expect("it ends");
    wait_until("the others to be forgotten", PATIENCE, async || stack.count(KEYS).await == 0).await;
    stack.finish().await;
}

/// As small as a page may be: it goes on where it has ended, and never finds what is younger.
#[tokio::test]
async fn pages_follow_each_other() {
    let database = Database::create(Servers::shared().await).await;
    make_old(&mut database.pool.acquire().await.expect("Postgres is there"), 25, 3).await;
    let (mut client, connection) = tokio_postgres::connect(&database.url_of("relay"), NoTls).await.expect("it logs in");
    tokio::spawn(connection);
    let mut since = None;
    for expected in [10, 10, 5, 0] {
        let page = forget_keys(&mut client, 2, since, 10, Duration::from_secs(5)).await.expect("it is answered");
        let Some(Forgotten { keys, last }) = page else { panic!("it took too long") };
        assert_eq!(keys, expected);
        assert!(since.is_none_or(|since| since <= last), "it went back");
        since = Some(last);
    }
    drop(client);
    database.drop().await;
}

/// Who locks the table stops those who use keys, for as long as the api lets a caller wait, and nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_table_of_keys_stops_only_those_who_use_them() {
    let stack = Stack::builder().start().await;
    make_old(&mut stack.pool().acquire().await.expect("Postgres is there"), 10, 400).await;
    let mut holder = stack.pool().begin().await.expect("a transaction begins");
    sqlx::query("LOCK TABLE idempotency_keys").execute(&mut *holder).await.expect("nobody holds it");
    let taken = one_at_a_time(&stack, 20, Duration::from_millis(300)).await;
    assert!(median(&taken) < AT_ONCE, "{taken:?}");
    let keyed = stack.client.request(stack.webhook("")).header("Idempotency-Key", "a key");
    assert_eq!(send(keyed).await.expect("the api answers").status, 503);
    let log = stack.relays[0].log();
    assert!(!log.contains("cannot look after what waits"), "the rest of the upkeep failed with it:\n{log}");
    holder.rollback().await.expect("it ends");
    wait_until("the keys to be forgotten", PATIENCE, async || stack.count(KEYS).await == 0).await;
    stack.finish().await;
}

/// Whoever runs the services may let them wait for locks for less long than a page may take.
#[tokio::test]
async fn a_page_that_takes_too_long_is_no_error() {
    let database = Database::create(Servers::shared().await).await;
    let mut holder = database.pool.begin().await.expect("a transaction begins");
    sqlx::query("LOCK TABLE idempotency_keys").execute(&mut *holder).await.expect("nobody holds it");
    let (mut client, connection) = tokio_postgres::connect(&database.url_of("relay"), NoTls).await.expect("it logs in");
    tokio::spawn(connection);
    for lock_timeout in ["0", "10ms"] {
        client.batch_execute(&format!("SET lock_timeout = '{lock_timeout}'")).await.expect("anybody may set it");
        let page = forget_keys(&mut client, 2, None, 10, Duration::from_millis(100)).await;
        assert_eq!(page.expect("it goes on"), None, "lock_timeout = {lock_timeout}");
    }
    holder.rollback().await.expect("it ends");
    drop(client);
    database.drop().await;
}
