//! Programs read what the api says. Each body stays what it was, letter for letter: the fields, their order, and how a
//! moment is written.

use harness::client::send;
use harness::signing::{stack, v1_key, v1a_key};
use harness::{PATIENCE, Stack, Webhook, wait_until};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

const TARGET: &str = "http://127.0.0.1:9/hook";

/// What a text is, if it is another one each time. A moment has as many digits of a second as it needs, and no more.
fn kind(text: &str) -> Option<&'static str> {
    if text.len() == 36 && text.parse::<Uuid>().is_ok() {
        return Some("an id");
    }
    OffsetDateTime::parse(text, &Rfc3339).ok()?;
    let (moment, kind) = match text.strip_suffix("+00:00") {
        Some(moment) => (moment, "a moment +00:00"),
        None => (text.strip_suffix('Z')?, "a moment Z"),
    };
    let is_short =
        moment.len() <= "2026-01-31T12:00:00.123456".len() && !(moment.contains('.') && moment.ends_with('0'));
    is_short.then_some(kind)
}

/// A body without what is another one each time.
fn pattern(body: &str) -> String {
    body.split('"').map(|text| kind(text).unwrap_or(text)).collect::<Vec<_>>().join("\"")
}

/// What a request is answered with.
async fn answer(request: RequestBuilder) -> String {
    pattern(&send(request).await.expect("the api answers").body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_about_webhooks() {
    let stack = Stack::builder().relays(0).workers(0).start().await;
    let post = || stack.client.request(Webhook::to(TARGET).max_attempts(3)).header("Idempotency-Key", "a-key");
    let id = send(post()).await.expect("the api answers").job_id();
    assert_eq!(
        answer(post()).await,
        r#"{"job_id":"an id","status":"pending","message":"job was accepted before with this idempotency key"}"#
    );
    assert_eq!(
        answer(stack.client.request(Webhook::to(TARGET))).await,
        r#"{"job_id":"an id","status":"pending","message":"job accepted and queued for processing"}"#
    );
    assert_eq!(
        answer(stack.client.delete(id).bearer_auth(stack.client.api_token())).await,
        r#"{"job_id":"an id","status":"cancelled","message":"job is cancelled and will not be delivered"}"#
    );
    assert_eq!(
        answer(stack.client.get("/nothing")).await,
        r#"{"error":{"code":"not_found","message":"there is nothing here","request_id":"an id"}}"#
    );
    stack.abandon().await;
}

/// A job that waits for its second attempt.
const JOB: &str = r#"{
    "attempt":1,
    "attempts":[$attempt],
    "claimed_by":null,
    "client_url":$client_url,
    "created_at":"a moment +00:00",
    "deliver_at":"a moment +00:00",
    "error":"HTTP 503",
    "id":"an id",
    "idempotency_key":null,
    "lease_until":null,
    "max_attempts":3,
    "ordering_key":"a-key",
    "outbox":$outbox_row,
    "outbox_id":$outbox_id,
    "payload_bytes":2,
    "retry_count":1,
    "status":"pending",
    "timeout_ms":null,
    "updated_at":"a moment +00:00"
}"#;

const ATTEMPT: &str = r#"{
    "attempt":1,
    "duration_ms":$duration_ms,
    "error":"HTTP 503",
    "outcome":"failed",
    "response_excerpt":"{\"received\":true}\n",
    "retry_at":"a moment +00:00",
    "started_at":"a moment +00:00",
    "status_code":503,
    "worker":$worker
}"#;

const OUTBOX_ROW: &str = r#"{
    "attempt":1,
    "destination":$destination,
    "due_at":"a moment +00:00",
    "id":$outbox_id,
    "job_id":"an id",
    "message_id":"an id",
    "ordering_key":"a-key",
    "payload_bytes":2,
    "published_at":null,
    "released":false,
    "traceparent":null,
    "turn":true,
    "waits_for":null
}"#;

/// A text that is written in lines, as one.
fn joined(lines: &str) -> String {
    lines.lines().map(str::trim_start).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_in_all_its_parts() {
    let stack = Stack::start().await;
    let url = stack.receiver_url("?status=503&retry_after=3600");
    let id = stack.client.post_webhook(&Webhook::to(&url).max_attempts(3).ordering_key("a-key")).await.job_id;
    let waiting = "SELECT count(*) FROM webhook_jobs WHERE status = 'pending' AND error <> ''";
    wait_until("the first attempt's record", PATIENCE, async || stack.count(waiting).await == 1).await;

    let job = answer(stack.client.authorized(Method::GET, &format!("/webhooks/{id}"))).await;
    let value: Value = serde_json::from_str(&job).expect("it is JSON");
    let (attempt, outbox_row) = (&value["attempts"][0], &value["outbox"]);
    let expected = JOB
        .replace("$attempt", &joined(ATTEMPT))
        .replace("$outbox_row", &joined(OUTBOX_ROW))
        .replace("$client_url", &json!(url).to_string())
        .replace("$destination", &outbox_row["destination"].to_string())
        .replace("$duration_ms", &attempt["duration_ms"].to_string())
        .replace("$outbox_id", &outbox_row["id"].to_string())
        .replace("$worker", &attempt["worker"].to_string());
    assert_eq!(job, joined(&expected));
    assert_eq!(value["outbox_id"], outbox_row["id"]);
    stack.cancel_the_rest().await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_about_signing_keys() {
    let stack = stack().relays(0).workers(0).start().await;
    let put = async |scheme: &str, secret: &str| {
        let body = json!({ "client_url": TARGET, "scheme": scheme, "secret": secret });
        stack.client.put_key(&body).await.body
    };
    let is_set = put("v1", &v1_key()).await;
    assert_eq!(
        pattern(&is_set),
        r#"{"destination":"http://127.0.0.1:9","key_id":"an id","public_key":null,"scheme":"v1"}"#
    );
    put("v1", &v1_key()).await;
    let is_set = put("v1a", &v1a_key()).await;
    let value: Value = serde_json::from_str(&is_set).expect("it is JSON");
    let public = &value["public_key"];
    assert!(public.as_str().is_some_and(|text| text.starts_with("whpk_")), "{is_set}");
    assert_eq!(
        pattern(&is_set),
        format!(r#"{{"destination":"http://127.0.0.1:9","key_id":"an id","public_key":{public},"scheme":"v1a"}}"#)
    );
    let shown = |expires_at: &str, public: &str, scheme: &str| {
        let moments = format!(r#""created_at":"a moment Z","error":null,"expires_at":{expires_at}"#);
        format!(r#"{{{moments},"key_id":"an id","public_key":{public},"scheme":"{scheme}"}}"#)
    };
    let keys = [
        shown("null", &public.to_string(), "v1a"),
        shown("null", "null", "v1"),
        shown(r#""a moment Z""#, "null", "v1"),
    ];
    let path = format!("/destinations/keys?client_url={TARGET}");
    assert_eq!(
        answer(stack.client.authorized(Method::GET, &path)).await,
        format!(r#"{{"destination":"http://127.0.0.1:9","keys":[{}]}}"#, keys.join(","))
    );
    let path = format!("/destinations/keys/{}", value["key_id"].as_str().expect("it has an id"));
    assert_eq!(
        answer(stack.client.authorized(Method::DELETE, &path)).await,
        r#"{"key_id":"an id","message":"key is removed and signs nothing more"}"#
    );
    stack.abandon().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_probes() {
    let stack = Stack::builder().relays(0).workers(0).start().await;
    assert_eq!(answer(stack.client.get("/health")).await, r#"{"status":"ok"}"#);
    assert_eq!(answer(stack.client.get("/ready")).await, r#"{"postgres":"ok","status":"ok"}"#);
    let rename = "ALTER TABLE outbox RENAME TO nothing";
    sqlx::query(rename).execute(stack.pool()).await.expect("a superuser may do it");
    let ready = answer(stack.client.get("/ready")).await;
    assert!(ready.starts_with(r#"{"postgres":""#) && ready.ends_with(r#"","status":"unavailable"}"#), "{ready}");
    stack.abandon().await;
}
