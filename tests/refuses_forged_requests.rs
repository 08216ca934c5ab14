//! What comes in is signed by somebody who knows a secret, now, or it is refused; and all refusals are alike.

use std::collections::HashSet;

use harness::client::{Response, send};
use harness::signing::{random_key, standard_headers};
use harness::{PATIENCE, Stack, StackBuilder, Webhook};

const SECRET: &str = "a secret of 24 bytes or so";
const OLD: &str = "the secret that was before";
const REVOKED: &str = "the secret that has leaked";
const TARGET: &str = "http://127.0.0.1:9/hook";

/// Nothing of what it accepts is delivered.
fn api() -> StackBuilder {
    Stack::builder().relays(0).workers(0).env("HMAC_SECRET", &format!("{SECRET}, {OLD}"))
}

fn seconds_from_now(seconds: i64) -> String {
    (outbox::service::clock::now().unix_timestamp() + seconds).to_string()
}

/// Sends this body with these headers.
async fn post(stack: &Stack, body: &str, headers: &[(&str, String)]) -> Response {
    let request = stack.client.unsigned_request().body(body.to_owned());
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
    send(request).await.expect("the api answers")
}

/// The body without what differs in every answer.
fn without_id(response: &Response) -> String {
    let json = response.json();
    let id = json["error"]["request_id"].as_str().expect("an id");
    assert_eq!(Some(id), response.headers["x-request-id"].to_str().ok());
    response.body.replace(id, "")
}

type Headers = Vec<(&'static str, String)>;

/// Requests that are signed, but not as they must be.
fn forgeries(text: &str) -> Vec<(&'static str, Headers)> {
    let now = seconds_from_now(0);
    let signed = |secret: &str, timestamp: &str| Vec::from(standard_headers(secret, "msg_1", timestamp, text));
    let good = || signed(SECRET, &now);
    let with = |name: &str, value: String| {
        let mut headers = good();
        headers.iter_mut().find(|it| it.0 == name).expect("it is one of them").1 = value;
        headers
    };
    let without = |name: &str| good().into_iter().filter(|it| it.0 != name).collect();
    let signature = good()[2].1.clone();
    let plain = |value: String| vec![("X-Signature", value)];
    vec![
        ("no headers at all", vec![]),
        ("no id", without("webhook-id")),
        ("no timestamp", without("webhook-timestamp")),
        ("no signature", without("webhook-signature")),
        ("an empty signature", with("webhook-signature", String::new())),
        ("not base64", with("webhook-signature", "v1,???".to_owned())),
        ("of another version", with("webhook-signature", signature.replace("v1,", "v1a,"))),
        ("more than five", with("webhook-signature", [signature.as_str(); 6].join(" "))),
        ("with an unknown secret", signed("a secret nobody knows of", &now)),
        ("with a revoked secret", signed(REVOKED, &now)),
        ("for another id", with("webhook-id", "msg_2".to_owned())),
        ("for another time", with("webhook-timestamp", seconds_from_now(-1))),
        ("of another body", Vec::from(standard_headers(SECRET, "msg_1", &now, "{}"))),
        ("older than 300 s", signed(SECRET, &seconds_from_now(-301))),
        ("more than 300 s ahead", signed(SECRET, &seconds_from_now(330))),
        ("a timestamp in milliseconds", signed(SECRET, &format!("{now}000"))),
        ("a timestamp of 1e9", signed(SECRET, "1e9")),
        ("a timestamp with a sign", signed(SECRET, &format!("+{now}"))),
        ("a negative timestamp", signed(SECRET, &format!("-{now}"))),
        ("a timestamp that overflows", signed(SECRET, "99999999999999999999")),
        ("an empty timestamp", signed(SECRET, "")),
        ("the header twice", [good(), vec![("webhook-signature", signature.clone())]].concat()),
        ("the id twice", [good(), vec![("webhook-id", "msg_1".to_owned())]].concat()),
        ("a good one beside a plain one that is wrong", [good(), plain("sha256=00".to_owned())].concat()),
        ("plain, with a revoked secret", plain(plain_signature(REVOKED, text))),
        ("plain, of another body", plain(plain_signature(SECRET, "{}"))),
    ]
}

fn plain_signature(secret: &str, body: &str) -> String {
    harness::signing::github_signature(secret, body.as_bytes())
}

#[tokio::test]
async fn every_forgery_gets_the_same_401() {
    let stack = api().start().await;
    let text = Webhook::to(TARGET).body();
    let mut bodies = HashSet::new();
    for (case, headers) in forgeries(&text) {
        let response = post(&stack, &text, &headers).await;
        assert_eq!(response.status, 401, "{case}: {}", response.body);
        bodies.insert(without_id(&response));
    }
    let without_token = send(stack.client.get(&format!("/webhooks/{}", uuid::Uuid::now_v7()))).await;
    bodies.insert(without_id(&without_token.expect("an answer")));
    assert_eq!(bodies.len(), 1, "401s can be told apart: {bodies:?}");

    let dotted = standard_headers(SECRET, "msg.1", &seconds_from_now(0), &text);
    let dotted = post(&stack, &text, &dotted).await;
    assert_eq!((dotted.status, &dotted.json()["error"]["code"]), (400, &"malformed_header".into()));
    assert_eq!(stack.jobs().await, 0);
}

#[tokio::test]
async fn what_is_signed_well_is_accepted() {
    let stack = api().start().await;
    let text = Webhook::to(TARGET).body();
    // The clock moves between the signature and its check, so the edge ahead may be hit and the one behind not;
    // the unit tests hold the clock still.
    for (id, secret, from_now) in [("a", SECRET, 0), ("b", OLD, 0), ("c", SECRET, 300), ("d", SECRET, -270)] {
        let mut headers = standard_headers(secret, id, &seconds_from_now(from_now), &text);
        if id == "b" {
            headers[2].1 = format!("v1a,AAAA v1,AAAA {}", headers[2].1);
        }
        let response = post(&stack, &text, &headers).await;
        assert_eq!(response.status, 202, "{id}: {}", response.body);
    }
    for signature in [
        plain_signature(SECRET, &text),
        plain_signature(OLD, &text),
        format!("sha256={},{}", "0".repeat(64), plain_signature(SECRET, &text)),
    ] {
        assert_eq!(post(&stack, &text, &[("X-Signature", signature)]).await.status, 202);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_finds_the_job_it_made() {
    let stack = Stack::builder().env("HMAC_SECRET", SECRET).start().await;
    let text = stack.webhook("").body();
    let headers = standard_headers(SECRET, "msg_1", &seconds_from_now(0), &text);
    let first = post(&stack, &text, &headers).await;
    assert_eq!(first.status, 202, "{}", first.body);
    stack.client.remember(first.job_id(), Some("{}"));

    let again = post(&stack, &text, &headers).await;
    assert_eq!((again.status, again.job_id()), (200, first.job_id()));
    // The header that is not signed does not make another job of it.
    let keyed = [&headers[..], &[("Idempotency-Key", "another".to_owned())]].concat();
    let keyed = post(&stack, &text, &keyed).await;
    assert_eq!((keyed.status, keyed.job_id()), (200, first.job_id()));
    // Nor does a new signature of the same message.
    let resent = post(&stack, &text, &standard_headers(SECRET, "msg_1", &seconds_from_now(-5), &text)).await;
    assert_eq!((resent.status, resent.job_id()), (200, first.job_id()));

    let other = stack.webhook("").payload("[]").body();
    let other = post(&stack, &other, &standard_headers(SECRET, "msg_1", &seconds_from_now(0), &other)).await;
    assert_eq!((other.status, &other.json()["error"]["code"]), (409, &"idempotency_conflict".into()));
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.receiver.received().len(), 1);
    stack.finish().await;
}

#[tokio::test]
async fn where_a_timestamp_is_required_a_plain_signature_is_a_forgery() {
    let key = format!("whsec_{}", random_key());
    let stack = api().env("REQUIRE_TIMESTAMP", "true");
    let stack = stack.env("HMAC_SECRET", &format!("{SECRET},{key}")).start().await;
    let text = Webhook::to(TARGET).body();
    let plain = post(&stack, &text, &[("X-Signature", plain_signature(SECRET, &text))]).await;
    let unsigned = post(&stack, &text, &[]).await;
    assert_eq!((plain.status, unsigned.status), (401, 401));
    assert_eq!(without_id(&plain), without_id(&unsigned));
    let standard = standard_headers(SECRET, "msg_1", &seconds_from_now(0), &text);
    assert_eq!(post(&stack, &text, &standard).await.status, 202);
    let both = [&standard[..], &[("X-Signature", "sha256=00".to_owned())]].concat();
    assert_eq!(post(&stack, &text, &both).await.status, 200, "the plain one counts for nothing");
}
