//! Whatever is refused, and by whom: the answer is the error that every other refusal is, and says what is missing.

use harness::client::{Response, send};
use harness::{Stack, Webhook};
use reqwest::Method;
use serde_json::Value;
use uuid::Uuid;

const TARGET: &str = "http://127.0.0.1:9/hook";

async fn api() -> Stack {
    Stack::builder().relays(0).workers(0).start().await
}

/// The head and the JSON body of an answer, whose length must be right.
fn split(answer: &str) -> (String, Value) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head ends in: {answer}"));
    let head = head.to_ascii_lowercase();
    assert!(head.contains(&format!("\r\ncontent-length: {}", body.len())), "{answer}");
    (head, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}, in: {answer}")))
}

fn assert_refused(case: &str, answer: &str, status: u16, code: &str) {
    let (head, body) = split(answer);
    assert!(head.starts_with(&format!("http/1.1 {status} ")), "{case}: {answer}");
    assert!(head.contains("\r\ncontent-type: application/json"), "{case}: {answer}");
    let error = &body["error"];
    assert_eq!(error["code"], code, "{case}: {answer}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{case}: {answer}");
    let id = error["request_id"].as_str().unwrap_or_else(|| panic!("{case} has no request id: {answer}"));
    assert!(head.contains(&format!("\r\nx-request-id: {id}")), "{case}: {answer}");
}

#[tokio::test]
async fn requests_that_cannot_be_read_get_the_errors_body() {
    let stack = api().await;
    let head = "GET /health HTTP/1.1\r\nHost: x\r\n";
    for (case, request, status, code) in [
        ("no HTTP", "hello\r\n\r\n".to_owned(), 400, "malformed_request"),
        ("another version", "GET / HTTP/3.0\r\nHost: x\r\n\r\n".to_owned(), 400, "malformed_request"),
        ("a header without a name", format!("{head}: x\r\n\r\n"), 400, "malformed_request"),
        ("two lengths", format!("{head}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"), 400, "malformed_request"),
        ("101 headers", format!("{head}{}\r\n", "X-A: 1\r\n".repeat(100)), 431, "head_too_large"),
        ("a head of 80 KiB", format!("{head}X-A: {}\r\n\r\n", "a".repeat(80 * 1_024)), 431, "head_too_large"),
        // Answered in full first.
        ("garbage behind a good request", format!("{head}\r\nhello\r\n\r\n"), 400, "malformed_request"),
    ] {
        let answer = stack.client.raw(request.as_bytes()).await;
        let refusal = answer.find("HTTP/1.1 4").unwrap_or_else(|| panic!("{case} is not refused: {answer}"));
        assert_refused(case, &answer[refusal..], status, code);
    }
    let refused = stack.apis[0].counter("outhook_api_requests_total").await;
    assert!(refused >= 7.0, "{refused} are counted");
}

#[tokio::test]
async fn a_path_that_is_too_long_gets_the_errors_body() {
    let stack = api().await;
    let head = " HTTP/1.1\r\nHost: x\r\n\r\n";
    for length in [65_400, 65_535, 70_000, 200_000] {
        let answer = stack.client.raw(format!("GET /{}{head}", "a".repeat(length - 1)).as_bytes()).await;
        let (head, body) = split(&answer);
        let known =
            [("404", "not_found"), ("414", "uri_too_long"), ("431", "head_too_large"), ("400", "malformed_request")];
        let refused = known
            .iter()
            .any(|(status, code)| head.starts_with(&format!("http/1.1 {status} ")) && body["error"]["code"] == *code);
        assert!(refused, "{length} bytes: {answer}");
    }
}

#[tokio::test]
async fn there_must_be_one_host() {
    let stack = api().await;
    let close = "Connection: close\r\n\r\n";
    for (case, request) in [
        ("none", format!("GET /health HTTP/1.1\r\n{close}")),
        ("two", format!("GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n{close}")),
        ("twice the same", format!("GET /health HTTP/1.1\r\nHost: a\r\nHost: a\r\n{close}")),
        ("two of HTTP/1.0", format!("GET /health HTTP/1.0\r\nHost: a\r\nHost: b\r\n{close}")),
        ("none, where a token is wanted", format!("DELETE /webhooks/1 HTTP/1.1\r\n{close}")),
    ] {
        let answer = stack.client.raw(request.as_bytes()).await.replace("HTTP/1.0 ", "HTTP/1.1 ");
        assert_refused(case, &answer, 400, "malformed_header");
    }
    // Probes speak so, and that version has no such header.
    for good in ["GET /health HTTP/1.0\r\n\r\n", "GET /health HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n"] {
        let answer = stack.client.raw(good.as_bytes()).await;
        assert_eq!(answer.get(9..12), Some("200"), "{good}: {answer}");
    }
}

#[tokio::test]
async fn a_401_says_what_it_wants_and_bearer_may_be_written_in_any_case() {
    let stack = api().await;
    let path = format!("/webhooks/{}", Uuid::now_v7());
    let without_signature = send(stack.client.unsigned_request().body(Webhook::to(TARGET).body())).await;
    let without_token = send(stack.client.get(&path)).await;
    for response in [without_signature, without_token].map(|response: Result<Response, _>| response.expect("an answer"))
    {
        assert_eq!(
            (response.status, &response.headers["www-authenticate"]),
            (401, &"Bearer".parse().expect("a value"))
        );
    }
    let token = stack.client.api_token();
    for (authorization, status) in [
        (format!("Bearer {token}"), 404),
        (format!("bearer {token}"), 404),
        (format!("BEARER {token}"), 404),
        (format!("bEaReR   {token}"), 404),
        (format!("Bearer{token}"), 401),
        (format!("Basic {token}"), 401),
        (format!("Bearer {token}x"), 401),
        ("Bearer".to_owned(), 401),
        (token.to_owned(), 401),
    ] {
        let request = stack.client.get(&path).header("Authorization", &authorization);
        assert_eq!(send(request).await.expect("an answer").status, status, "{authorization}");
    }
    let put = stack.client.get("/destinations/keys?destination=https://example.com");
    assert_eq!(send(put.header("Authorization", format!("bearer {token}"))).await.expect("an answer").status, 200);
}

/// A request that each route refuses; the parser's own are above.
#[tokio::test]
async fn every_refusal_has_the_errors_body() {
    let stack = api().await;
    for (method, path) in [
        (Method::POST, "/webhooks"),
        (Method::GET, "/webhooks"),
        (Method::GET, "/webhooks/1"),
        (Method::PATCH, "/webhooks/1"),
        (Method::DELETE, "/webhooks/%ff"),
        (Method::PUT, "/destinations/keys"),
        (Method::GET, "/destinations/keys"),
        (Method::OPTIONS, "/destinations/keys/1"),
        (Method::DELETE, "/destinations/keys/1"),
        (Method::POST, "/health"),
        (Method::TRACE, "/"),
    ] {
        let case = format!("{method} {path}");
        let response = send(stack.client.authorized(method, path)).await.expect("an answer");
        assert!((400..500).contains(&response.status), "{case}: {}", response.status);
        let id = response.headers["x-request-id"].to_str().expect("an id");
        assert_eq!(response.json()["error"]["request_id"], id, "{case}: {}", response.body);
    }
}
