//! One job an idempotency key, however often and however concurrently it comes.

use std::slice;

use futures_util::future::join_all;
use harness::client::{Response, body, send};
use harness::database::{Database, service_pool};
use harness::job::{idempotency, new_job};
use harness::signing::standard_headers;
use harness::{PATIENCE, Servers, Stack, wait_until};
use outbox::job::accept::{Accepted, NewJob, accept};
use outbox::job::states::Status;
use outbox::service::database::Failure;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

const SECRET: &str = "a secret of 24 bytes or so";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_equal_requests_at_once_are_one_job() {
    let stack = Stack::start().await;
    let text = body(r#"{"order":1}"#, &stack.receiver_url(""), "");
    let requests = (0..50).map(|_| send(stack.client.request(text.clone()).header("Idempotency-Key", "order-1")));
    let responses = join_all(requests).await;

    let mut statuses = Vec::new();
    let mut ids = std::collections::HashSet::new();
    for response in responses {
        let response = response.expect("the api answers");
        statuses.push(response.status);
        ids.insert(response.job_id());
    }
    statuses.sort_unstable();
    assert_eq!((&statuses[..49], statuses[49]), (&[200; 49][..], 202));
    assert_eq!(ids.len(), 1);
    stack.client.remember(ids.into_iter().next().expect("there is one"), Some(r#"{"order":1}"#));

    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.count("SELECT count(*) FROM webhook_jobs").await, 1);
    assert_eq!(stack.receiver.received().len(), 1);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_key_answers_its_job_or_a_conflict() {
    let mut stack = Stack::start().await;
    let text = body("{}", &stack.receiver_url(""), "");
    let keyed = |stack: &Stack, text: &str| send(stack.client.request(text).header("Idempotency-Key", "k"));
    let first = keyed(&stack, &text).await.expect("the api answers");
    assert_eq!(first.status, 202);
    stack.client.remember(first.job_id(), Some("{}"));
    stack.wait_until_drained(PATIENCE).await;

    let conflict = keyed(&stack, &body("[]", &stack.receiver_url(""), "")).await.expect("the api answers");
    assert_eq!((conflict.status, &conflict.json()["error"]["code"]), (409, &"idempotency_conflict".into()));

    // The key outlives the process and the job.
    stack.apis[0].kill().await;
    stack.apis.clear();
    stack.start_api().await;
    let again = keyed(&stack, &text).await.expect("the api answers");
    assert_eq!((again.status, again.job_id()), (200, first.job_id()));
    assert_eq!(again.json()["status"], "success", "it says how far the job is");
    assert_eq!(stack.receiver.received().len(), 1);
    stack.finish().await;
}

/// Sends a body as Standard Webhooks has it, with a key of the caller's or without.
async fn post_signed(stack: &Stack, id: &str, key: Option<&str>, text: &str) -> Response {
    let now = outbox::service::clock::now().unix_timestamp().to_string();
    let headers = standard_headers(SECRET, id, &now, text);
    let request = stack.client.unsigned_request().body(text.to_owned());
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
    let request = key.into_iter().fold(request, |request, key| request.header("Idempotency-Key", key));
    send(request).await.expect("the api answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_id_and_the_callers_key_both_count() {
    let stack = Stack::builder().env("HMAC_SECRET", SECRET).start().await;
    let text = body("{}", &stack.receiver_url(""), "");
    let other = body("[]", &stack.receiver_url(""), "");
    let mut jobs = Vec::new();
    for (id, key) in [("msg_1", Some("order-1")), ("msg_2", Some("order-2")), ("msg_3", None)] {
        let first = post_signed(&stack, id, key, &text).await;
        assert_eq!(first.status, 202, "{}", first.body);
        stack.client.remember(first.job_id(), Some("{}"));
        jobs.push(first.job_id());
    }
    let known = [
        ("a repeat of the caller's under a new id", "msg_4", Some("order-1"), 0),
        ("a replay as it was", "msg_1", Some("order-1"), 0),
        ("a replay without the header", "msg_1", None, 0),
        ("a replay with another header", "msg_1", Some("order-9"), 0),
        ("a replay of what came without a header", "msg_3", Some("order-9"), 2),
    ];
    for (case, id, key, job) in known {
        let again = post_signed(&stack, id, key, &text).await;
        assert_eq!((again.status, again.job_id()), (200, jobs[job]), "{case}");
    }
    let plain = send(
        stack
            .client
            .unsigned_request()
            .body(text.clone())
            .header("X-Signature", harness::signing::github_signature(SECRET, text.as_bytes()))
            .header("Idempotency-Key", "order-1"),
    );
    let plain = plain.await.expect("the api answers");
    assert_eq!((plain.status, plain.job_id()), (200, jobs[0]), "the same key in the other scheme");
    let conflicts = [
        ("the key with another body", "msg_5", Some("order-1"), &other),
        ("the id with another body", "msg_1", Some("order-9"), &other),
        ("the key of one job and the id of another", "msg_2", Some("order-1"), &text),
    ];
    for (case, id, key, text) in conflicts {
        let conflict = post_signed(&stack, id, key, text).await;
        assert_eq!(conflict.status, 409, "{case}: {}", conflict.body);
        assert_eq!(conflict.json()["error"]["code"], "idempotency_conflict", "{case}");
    }
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.count("SELECT count(*) FROM webhook_jobs").await, 3);
    stack.finish().await;
}

fn job(key: Option<&str>, signed_id: Option<&str>) -> NewJob {
    NewJob { idempotency: key.map(|key| idempotency(key, signed_id)), ..new_job("http://example.com") }
}

#[tokio::test]
async fn one_batch_may_hold_every_kind_of_key() {
    let database = Database::create(Servers::shared().await).await;
    let pool = service_pool(&database.url, 8, &[]);
    let accept = async |jobs: &[NewJob]| accept(&pool, jobs).await.expect("they are accepted");
    let known = [job(Some("a"), Some("s")), job(Some("b"), None)];
    assert_eq!(accept(&known).await, [Accepted::New(known[0].id), Accepted::New(known[1].id)]);

    let batch = [
        job(None, None),
        job(Some("a"), None),
        job(Some("c"), Some("s")),
        job(Some("b"), Some("s")),
        job(Some("d"), Some("t")),
        job(Some("e"), Some("t")),
        job(Some("b"), Some("u")),
    ];
    let answers = accept(&batch).await;
    let found = |job: &NewJob| Accepted::Known(job.id, Some(Status::Pending));
    assert_eq!(answers[..3], [Accepted::New(batch[0].id), found(&known[0]), found(&known[0])]);
    assert_eq!(answers[3], Accepted::KeyConflict, "its key is of one job, its id of another");
    assert_eq!(answers[4..], [Accepted::New(batch[4].id), found(&batch[4]), found(&known[1])]);

    // The first one takes the id from the second and then gives way itself, for its key is known.
    let batch = [job(Some("b"), Some("v")), job(Some("f"), Some("v")), job(Some("f"), Some("w"))];
    assert_eq!(accept(&batch).await, [found(&known[1]), Accepted::New(batch[1].id), found(&batch[1])]);
    // What made no job holds no key.
    let rest = job(Some("w"), Some("w"));
    assert_eq!(accept(slice::from_ref(&rest)).await, [Accepted::New(rest.id)]);
    let held = "SELECT key || CASE WHEN is_signed THEN ' signed' ELSE '' END FROM idempotency_keys ORDER BY 1";
    let held: Vec<String> = sqlx::query_scalar(held).fetch_all(&database.pool).await.expect("keys");
    assert_eq!(held, ["a", "b", "d", "f", "s signed", "t signed", "v signed", "w", "w signed"]);

    let gone = "DELETE FROM webhook_jobs WHERE idempotency_key = 'a'";
    sqlx::query(gone).execute(&database.pool).await.expect("the owner may do it");
    assert_eq!(accept(&[job(Some("a"), None)]).await, [Accepted::Known(known[0].id, None)], "its job was deleted");
    database.drop().await;
}

/// Each waits for the other's keys, in one order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_with_the_same_keys_in_another_order_do_not_deadlock() {
    const ROUNDS: usize = 25;
    let database = Database::create(Servers::shared().await).await;
    let pool = service_pool(&database.url_of("api"), 8, &[]);
    let keys: Vec<String> = (0..40).map(|number| format!("key-{number}")).collect();
    let run = async |number: usize| {
        for round in 0..ROUNDS {
            let of = |place: usize| {
                let key = format!("{round} {}", keys[(place * 7 + number * 5) % keys.len()]);
                job(Some(&key), Some(&format!("{:?}", key.chars().rev())))
            };
            let jobs: Vec<NewJob> = (0..keys.len()).map(of).collect();
            accept(&pool, &jobs).await.expect("no batch is in another's way");
        }
    };
    join_all((0..8).map(run)).await;
    let made = "SELECT ARRAY[count(*), count(DISTINCT idempotency_key)] FROM webhook_jobs";
    let made: Vec<i64> = sqlx::query_scalar(made).fetch_one(&database.pool).await.expect("a count");
    let each_once = i64::try_from(ROUNDS * keys.len()).expect("it is small");
    assert_eq!(made, [each_once, each_once], "a key made two jobs, or none");
    drop(pool);
    database.drop().await;
}

/// A transaction that ends without its commit leaves its keys to those who wait for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_another_transaction_is_writing_is_waited_for() {
    let database = Database::create(Servers::shared().await).await;
    let pool = service_pool(&database.url_of("api"), 1, &[]);
    for (ends_with, is_new) in [("ROLLBACK", true), ("COMMIT", false)] {
        let mut other = database.pool.acquire().await.expect("Postgres is there");
        let enqueue =
            format!("BEGIN; SELECT outhook.enqueue('http://example.com', '{{}}', idempotency_key => '{ends_with}')");
        sqlx::raw_sql(AssertSqlSafe(enqueue)).execute(&mut *other).await.expect("it is enqueued");
        let jobs = [job(Some(ends_with), None)];
        let end = async {
            let waiting = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock' AND starts_with(query, '-- accept_jobs')";
            wait_until("the batch to wait", PATIENCE, async || {
                sqlx::query_scalar::<_, i64>(waiting).fetch_one(&database.pool).await.expect("a count") == 1
            })
            .await;
            sqlx::raw_sql(ends_with).execute(&mut *other).await.expect("it ends");
        };
        let (answers, ()) = tokio::join!(accept(&pool, &jobs), end);
        // The other one's request is not this one.
        let expected = if is_new { Accepted::New(jobs[0].id) } else { Accepted::KeyConflict };
        assert_eq!(answers.expect("it waits for less than a second"), [expected], "{ends_with}");
    }
    drop(pool);
    database.drop().await;
}

/// Or else the batch would be tried again, and a job that is stored be taken for somebody else's.
#[tokio::test]
async fn a_batch_whose_known_keys_cannot_be_looked_up_is_not_stored() {
    let database = Database::create(Servers::shared().await).await;
    let pool = service_pool(&database.url_of("api"), 1, &[]);
    accept(&pool, &[job(Some("known"), None)]).await.expect("it is accepted");
    let owner = async |statement: &'static str| {
        sqlx::query(statement).execute(&database.pool).await.expect("the owner may do it");
    };
    owner("ALTER TABLE webhook_jobs RENAME COLUMN status TO renamed").await;
    let batch = [job(None, None), job(Some("new"), None), job(Some("known"), None)];
    accept(&pool, &batch).await.expect_err("the key cannot be looked up");
    let stored = "SELECT count(*) FROM webhook_jobs";
    let stored: i64 = sqlx::query_scalar(stored).fetch_one(&database.pool).await.expect("a count");
    assert_eq!(stored, 1, "something of the batch was stored");

    owner("ALTER TABLE webhook_jobs RENAME COLUMN renamed TO status").await;
    let answers = accept(&pool, &batch).await.expect("it is accepted");
    assert_eq!(answers[..2], [Accepted::New(batch[0].id), Accepted::New(batch[1].id)]);
    assert!(matches!(answers[2], Accepted::Known(..)));
    drop(pool);
    database.drop().await;
}

/// Each job takes an id from the next one and then gives way itself, for its own key is known: what that costs grows with the
/// cube of the batch.
#[tokio::test]
async fn a_batch_whose_keys_depend_on_each_other_is_given_up_soon_and_its_jobs_are_accepted_alone() {
    const JOBS: usize = 200;
    let database = Database::create(Servers::shared().await).await;
    let pool = service_pool(&database.url_of("api"), 1, &[]);
    let known = job(Some("key 0"), None);
    accept(&pool, slice::from_ref(&known)).await.expect("it is accepted");
    let key = |number: usize| format!("key {number}");
    let chain: Vec<NewJob> =
        (0..JOBS).map(|number| job(Some(&key(number.div_ceil(2))), Some(&key(number / 2)))).collect();
    let error = accept(&pool, &chain).await.expect_err("it would take too long");
    assert_eq!(Failure::of(&error), Failure::Conflict, "{error}");
    for job in &chain {
        accept(&pool, slice::from_ref(job)).await.expect("it is answered alone");
    }
    drop(pool);
    database.drop().await;
}

/// The api's user may call the function that writes keys, which does so with the owner's rights.
#[tokio::test]
async fn nobody_takes_the_key_of_a_job_that_is_there_or_gives_one_to_none() {
    let database = Database::create(Servers::shared().await).await;
    let pool = service_pool(&database.url_of("api"), 1, &[]);
    let held = [job(Some("a"), None), job(Some("b"), None)];
    accept(&pool, &held).await.expect("they are accepted");
    let mut api = PgConnection::connect(&database.url_of("api")).await.expect("it logs in");
    let call = "SELECT refused_id FROM outhook.accept_jobs($1, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}',
        $2, ARRAY[$3, $4], ARRAY[false, false], ARRAY['x', 'x']::bytea[])";
    let (first, nobody) = (held[0].id, Uuid::now_v7());
    for (case, ids, keyed, keys) in [
        ("both keys for the first job", vec![], [first, first], ["a", "b"]),
        ("both keys for the first job, as if it were new", vec![first], [first, first], ["a", "b"]),
        ("keys for no job", vec![], [nobody, nobody], ["c", "d"]),
    ] {
        let taking =
            sqlx::query(call).bind(ids).bind(keyed.to_vec()).bind(keys[0]).bind(keys[1]).execute(&mut api).await;
        taking.expect_err(case);
    }
    let holders = "SELECT array_agg(job_id ORDER BY key) FROM idempotency_keys";
    let holders: Vec<Uuid> = sqlx::query_scalar(holders).fetch_one(&database.pool).await.expect("keys");
    assert_eq!(holders, held.map(|job| job.id));
    api.close().await.expect("it ends");
    drop(pool);
    database.drop().await;
}
