//! An accepted webhook arrives: the very bytes, signed, at its time; and psql shows it.

use std::time::Duration;

use harness::client::send;
use harness::{PATIENCE, Stack, Webhook, wait_until};
use receiver::Signature;
use sqlx::Row;
use time::OffsetDateTime;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_202_comes_after_both_rows() {
    let mut stack = Stack::builder().relays(0).workers(0).start().await;
    let request = stack.client.request(stack.webhook(""));
    let response = send(request).await.expect("the api answers");

    let id = response.job_id();
    stack.client.remember(id, Some("{}"));
    assert_eq!(response.status, 202);
    let expected =
        format!(r#"{{"job_id":"{id}","status":"pending","message":"job accepted and queued for processing"}}"#);
    assert_eq!(response.body, expected);
    assert_eq!(id.get_version_num(), 7, "the primary key is also the time order");

    let row: (String, i32, i32, String) =
        sqlx::query_as("SELECT status, attempt, retry_count, error FROM webhook_jobs WHERE id = $1")
            .bind(id)
            .fetch_one(stack.pool())
            .await
            .expect("the job has its row");
    assert_eq!(row, ("pending".to_owned(), 0, 0, String::new()));
    let outbox_row: (Uuid, i32, bool, bool) =
        sqlx::query_as("SELECT job_id, attempt, due_at <= now(), published_at IS NULL FROM outbox")
            .fetch_one(stack.pool())
            .await
            .expect("there is one outbox row");
    assert_eq!(outbox_row, (id, 0, true, true));

    // What was accepted while nobody else ran is delivered as soon as somebody does.
    stack.start_relay().await;
    stack.start_worker().await;
    stack.wait_for_deliveries(1).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_payload_arrives_byte_for_byte_and_signed() {
    let stack = Stack::start().await;
    let long = format!("[{}0]", "0, ".repeat(200_000));
    for payload in [
        r#""  plain text, \"quoted\" \u00e9 \ud83d\ude00 \/ \t\r\n ""#,
        r#""{ \"json\" : \"in a string\" }""#,
        r#""""#,
        "{}",
        "{ \"b\" : 1.0e+10 ,\n\t\"a\":[1 , 2] , \"n\": 12345678901234567890.1234567890 , \"e\": \"\\u00e9é\" }",
        "[ 1,  {\"x\" : null}\r\n]",
        &long,
    ] {
        let accepted = stack.post(payload, "").await;
        let already = stack.receiver.received().len();
        stack.wait_for_deliveries(already.max(1)).await;
        wait_until("the job's delivery", PATIENCE, async || !stack.deliveries(accepted.job_id).is_empty()).await;
        let delivery = &stack.deliveries(accepted.job_id)[0];
        assert_eq!(Some(&delivery.body[..]), accepted.payload.as_deref(), "{payload:.100}");
        assert_eq!(delivery.signature, Signature::Verified);
    }
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_carries_its_headers() {
    let stack = Stack::start().await;
    let webhook = stack.webhook("?mine=too").header("X-Tenant", "blue").header("Authorization", "Bearer theirs");
    let accepted = stack.client.post_webhook(&webhook).await;
    stack.wait_for_deliveries(1).await;

    let delivery = &stack.receiver.received()[0];
    let id = accepted.job_id.to_string();
    for (name, expected) in [
        ("content-type", "application/json"),
        ("x-webhook-job-id", &id),
        ("x-webhook-attempt", "1"),
        ("webhook-id", &id),
        ("x-tenant", "blue"),
        ("authorization", "Bearer theirs"),
    ] {
        assert_eq!(delivery.header(name), Some(expected), "{name}");
    }
    assert!(delivery.header("user-agent").is_some_and(|agent| agent.starts_with("outhook/")));
    assert!(delivery.header("webhook-signature").is_some_and(|signature| signature.starts_with("v1,")));
    assert!(delivery.header("traceparent").is_some());
    assert_eq!(delivery.path_and_query, "/hook?mine=too");
    stack.finish().await;
}

/// W3C Trace Context: what a receiver gets belongs to the caller's trace, if there is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_is_part_of_the_callers_trace() {
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let stack = Stack::start().await;
    let post = async |webhook: Webhook, headers: &[(&str, &str)]| {
        let request = stack.client.request(webhook);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let answer = send(request).await.expect("the api answers");
        assert_eq!(answer.status, 202, "{}", answer.body);
        let id = answer.job_id();
        stack.client.remember(id, Some("{}"));
        wait_until("the job's delivery", PATIENCE, async || !stack.deliveries(id).is_empty()).await;
        let delivery = stack.deliveries(id).swap_remove(0);
        let header = |name| delivery.header(name).map(ToOwned::to_owned);
        (id, header("traceparent").expect("there always is one"), header("tracestate"))
    };
    let states = [("tracestate", "vendor=1"), ("tracestate", "other=2")];
    let (_, parent, state) = post(stack.webhook(""), &[("traceparent", PARENT), states[0], states[1]]).await;
    assert!(parent.starts_with(&PARENT[..36]) && parent.ends_with("-01") && parent != PARENT, "{parent}");
    assert_eq!(state.as_deref(), Some("vendor=1,other=2"));

    // What is no trace is not passed on, nor is what belongs to it.
    let nobodys = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
    let (id, parent, state) = post(stack.webhook(""), &[("traceparent", nobodys), states[0]]).await;
    assert!(parent.starts_with(&format!("00-{}-", id.simple())), "{parent}");
    assert_eq!(state, None);

    // A job's own stands.
    let with_its_own = stack.webhook("").header("Traceparent", PARENT).header("TraceState", "own=3");
    let (_, parent, state) =
        post(with_its_own, &[("traceparent", "00-11111111111111111111111111111111-1111111111111111-00"), states[0]])
            .await;
    assert_eq!((parent.as_str(), state.as_deref()), (PARENT, Some("own=3")));
    let long = "x".repeat(513);
    assert_eq!(post(stack.webhook(""), &[("traceparent", PARENT), ("tracestate", &long)]).await.2, None);
    // Where the job's own headers leave no room for it, it does not keep the job from being delivered.
    let full = stack.webhook("").header("X-Long", &"x".repeat(8_180));
    assert_eq!(post(full, &[("traceparent", PARENT), states[0]]).await.2, None);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_methods, reason = "the caller's clock")]
async fn a_webhook_waits_for_its_deliver_at() {
    let stack = Stack::start().await;
    let deliver_at = OffsetDateTime::now_utc() + Duration::from_secs(2);
    stack.client.post_webhook(&stack.webhook("").deliver_at(deliver_at)).await;
    stack.wait_for_deliveries(1).await;

    let arrived = stack.receiver.received()[0].at;
    assert!(arrived >= deliver_at, "it came {} early", deliver_at - arrived);
    assert!(arrived < deliver_at + Duration::from_secs(5), "it came {} late", arrived - deliver_at);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_seen_over_http_and_in_psql() {
    let stack = Stack::start().await;
    let id = stack.post("{}", "?fail_times=1").await.job_id;
    stack.wait_until_drained(PATIENCE).await;

    let job = stack.client.job(id).await;
    assert_eq!((&job["status"], &job["retry_count"], &job["attempt"]), (&"success".into(), &1.into(), &2.into()));
    assert_eq!(job["outbox"], serde_json::Value::Null);
    let outcomes: Vec<_> = job["attempts"].as_array().expect("attempts are a list").iter().collect();
    assert_eq!(outcomes.len(), 2, "{job}");
    assert_eq!((&outcomes[0]["outcome"], &outcomes[0]["status_code"]), (&"failed".into(), &500.into()));
    assert_eq!((&outcomes[1]["outcome"], &outcomes[1]["status_code"]), (&"success".into(), &200.into()));

    let without_token = send(stack.client.get(&format!("/webhooks/{id}"))).await.expect("the api answers");
    assert_eq!(without_token.status, 401);
    let wrong_token = send(stack.client.get(&format!("/webhooks/{id}")).bearer_auth("x".repeat(32))).await;
    assert_eq!(wrong_token.expect("the api answers").status, 401);

    // Word for word what people have in their shell's history.
    let psql = "SELECT id, status, retry_count, error, created_at FROM webhook_jobs ORDER BY created_at DESC LIMIT 10;";
    let rows = sqlx::raw_sql(psql).fetch_all(stack.pool()).await.expect("the query works");
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].get::<Uuid, _>(0), rows[0].get::<&str, _>(1)), (id, "success"));
    stack.finish().await;
}
