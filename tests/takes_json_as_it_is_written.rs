//! JSON that is valid is taken as it is written; what goes beyond a limit, or is of the wrong type, is told which.

use harness::client::{Response, body, send};
use harness::{PATIENCE, Stack};
use reqwest::Method;
use serde_json::{Value, json};

const TARGET: &str = "http://127.0.0.1:9/hook";

/// Objects and arrays inside one another, so many.
fn nested(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_valid_arrives_byte_for_byte() {
    let stack = Stack::start().await;
    let digits = format!("[{},-0.{}]", "9".repeat(400), "1".repeat(400));
    let payloads = [
        "[1e400, -1E-400]",
        &digits,
        "[-0, -0.0]",
        r#"{"half": "\ud800", "\uDFFF": ["\udbff\ud83d"]}"#,
        r#"{"nul": "\u0000"}"#,
        r#"[{"a": 1}, {"a": 1}, "a", "\"a\":"]"#,
        // The body is one more.
        &nested(126),
    ];
    for payload in payloads {
        stack.post(payload, "").await;
    }
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.receiver.received().len(), payloads.len());
    // With that the bytes are compared.
    stack.finish().await;
}

fn assert_says(case: &str, response: &Response, expected: &str) {
    assert_eq!(response.status, 422, "{case}: {}", response.body);
    let error = &response.json()["error"];
    assert_eq!(error["code"], "invalid_field", "{case}: {}", response.body);
    let message = error["message"].as_str().expect("a message");
    assert!(message.starts_with(expected), "{case}: {message}");
}

#[tokio::test]
async fn what_goes_beyond_a_limit_is_told_which() {
    let stack = Stack::builder().relays(0).workers(0).start().await;
    let twice = "the body: an object may have each key once";
    let half = "it has half of a surrogate pair, which no text can hold";
    for (case, body, expected) in [
        ("nested 128 deep", body(&nested(127), TARGET, ""), "the body: it may be nested 127 deep"),
        ("half a million deep", body(&nested(500_000), TARGET, ""), "the body: it may be nested 127 deep"),
        ("a key twice", body(r#"{"a":1,"a":2}"#, TARGET, ""), twice),
        ("a key twice, in other words", body(r#"[{"b":{"a":1,"\u0061":2}}]"#, TARGET, ""), twice),
        ("a field twice", body("{}", TARGET, r#","payload":{}"#), twice),
        ("half a character in a string", body(r#""\ud800""#, TARGET, ""), &format!("payload: {half}")),
        (
            "half a character in a header",
            body("{}", TARGET, r#","headers":{"x-a":"\udc00"}"#),
            &format!("headers.x-a: {half}"),
        ),
        ("U+0000 in a string", body(r#""\u0000""#, TARGET, ""), "payload: it contains U+0000"),
        (
            "more than a number of it may be",
            body("{}", TARGET, r#","max_attempts":1e400"#),
            "max_attempts: it must be a whole",
        ),
    ] {
        let response = send(stack.client.request(body)).await.expect("the api answers");
        assert_says(case, &response, expected);
    }
    assert_eq!(stack.jobs().await, 0);
}

#[tokio::test]
async fn a_wrong_type_is_named_in_the_words_of_json() {
    let stack = Stack::builder().relays(0).workers(0).start().await;
    let good = json!({ "payload": {}, "client_url": TARGET });
    let secret = "hunter2";
    for (field, value, expected) in [
        ("payload", json!(7), "payload: a string, an object or an array, not a number"),
        ("payload", Value::Null, "payload: a string, an object or an array, not null"),
        ("payload", json!(true), "payload: a string, an object or an array, not a boolean"),
        ("client_url", json!([secret]), "client_url: a string, not an array"),
        ("client_url", Value::Null, "client_url: a string, not null"),
        ("headers", json!([]), "headers: an object, not an array"),
        ("headers", json!({ "x-a": 1 }), "headers.x-a: a string, not a number"),
        ("deliver_at", json!(1), "deliver_at: a string, not a number"),
        ("max_attempts", json!(secret), "max_attempts: a number, not a string"),
        ("max_attempts", json!(1.5), "max_attempts: it must be a whole number from 1 to 100"),
        ("timeout_ms", json!({ "a": secret }), "timeout_ms: a number, not an object"),
        ("ordering_key", json!(false), "ordering_key: a string, not a boolean"),
        ("signing_secret", json!([secret]), "signing_secret: a string, not an array"),
        ("priority", json!(secret), "unknown field `priority`"),
    ] {
        let mut wrong = good.clone();
        wrong[field] = value;
        let response = send(stack.client.request(wrong.to_string())).await.expect("the api answers");
        assert_says(field, &response, expected);
        assert!(!response.body.contains(secret), "the value is repeated: {}", response.body);
    }
    let array = send(stack.client.request(format!("[{good}]"))).await.expect("the api answers");
    assert_says("an array", &array, "the body: an object, not an array");

    let good = json!({ "client_url": "https://example.com", "scheme": "github", "secret": "0123456789abcdef" });
    for (field, value, expected) in [
        ("client_url", json!(1), "client_url: a string, not a number"),
        ("scheme", json!({}), "scheme: a string, not an object"),
        ("secret", json!([secret]), "secret: a string, not an array"),
        ("overlap_sec", json!(secret), "overlap_sec: a number, not a string"),
    ] {
        let mut wrong = good.clone();
        wrong[field] = value;
        let request = stack.client.authorized(Method::PUT, "/destinations/keys");
        let request = request.header("Content-Type", "application/json").body(wrong.to_string());
        let response = send(request).await.expect("the api answers");
        assert_says(field, &response, expected);
        assert!(!response.body.contains(secret), "the value is repeated: {}", response.body);
    }
}
