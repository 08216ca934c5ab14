//! Bad input gets a clear error, and nothing of it is stored.

mod bodies;

use std::time::{Duration, Instant};

use harness::client::{Response, send};
use harness::{Client, Stack, Webhook};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A limit that tests can reach; the bodies here are shorter, but for those that are meant to be longer.
const MAX_BODY_BYTES: usize = 16_384;

/// Time-outs of the api in these tests, and what they may be late on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(1);
const SLACK: Duration = Duration::from_secs(10);

const TARGET: &str = "http://127.0.0.1:9/hook";

/// Only the api: nothing of what it stores is delivered.
async fn api() -> Stack {
    Stack::builder()
        .relays(0)
        .workers(0)
        .env("MAX_BODY_BYTES", &MAX_BODY_BYTES.to_string())
        .env("HEADER_TIMEOUT_SEC", "1")
        .env("BODY_TIMEOUT_SEC", "1")
        .env("MAX_CONNECTIONS", "16")
        .start()
        .await
}

/// Nothing was stored but what was answered with 202.
async fn assert_stored_is_accepted(stack: &Stack) {
    assert_eq!(usize::try_from(stack.jobs().await), Ok(stack.client.accepted().len()));
}

fn assert_error(case: &str, response: &Response, status: u16, code: &str) {
    assert_eq!(response.status, status, "{case}: {}", response.body);
    let error = &response.json()["error"];
    assert_eq!(error["code"], code, "{case}: {}", response.body);
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{case}: {}", response.body);
    assert_eq!(error["request_id"].as_str(), response.headers["x-request-id"].to_str().ok(), "{case}");
    for secret in ["postgres", "sqlstate", "127.0.0.1", "SELECT", "INSERT"] {
        assert!(!response.body.contains(secret), "{case} gives {secret} away: {}", response.body);
    }
}

#[tokio::test]
async fn requests_that_are_not_signed_by_a_known_secret() {
    let stack = api().await;
    let client = &stack.client;
    let good_body = Webhook::to(TARGET).payload(r#"{"a": 1}"#).body();
    let good = client.sign(good_body.as_bytes());
    let re_serialised =
        client.sign(serde_json::from_str::<Value>(&good_body).expect("it is JSON").to_string().as_bytes());
    let wrong = format!("sha256={}", "0".repeat(64));
    let rows: Vec<(&str, Vec<String>)> = vec![
        ("none", vec![]),
        ("empty", vec![String::new()]),
        ("no prefix", vec![good.replace("sha256=", "")]),
        ("not hex", vec![format!("sha256={}", "zz".repeat(32))]),
        ("31 bytes", vec![good[..good.len() - 2].to_owned()]),
        ("33 bytes", vec![format!("{good}00")]),
        ("wrong", vec![wrong.clone()]),
        ("of another body", vec![client.sign(b"{}")]),
        ("of the body as somebody else would write it", vec![re_serialised]),
        ("six, all valid", vec![[good.as_str(); 6].join(",")]),
        ("the header twice", vec![good.clone(), good.clone()]),
    ];
    let mut bodies = std::collections::HashSet::new();
    for (case, signatures) in rows {
        let mut request = client.unsigned_request();
        for signature in signatures {
            request = request.header("X-Signature", signature);
        }
        let response = send(request.body(good_body.clone())).await.expect(case);
        assert_error(case, &response, 401, "unauthorized");
        let id = response.json()["error"]["request_id"].as_str().expect("an id").to_owned();
        bodies.insert(response.body.replace(&id, ""));
    }
    assert_eq!(bodies.len(), 1, "401s can be told apart: {bodies:?}");

    for signature in [good.clone(), format!("{wrong},{good}"), good.to_uppercase().replace("SHA256", "sha256")] {
        let response = send(client.unsigned_request().header("X-Signature", &signature).body(good_body.clone())).await;
        let response = response.expect("an answer");
        assert_eq!(response.status, 202, "{signature}: {}", response.body);
        client.remember(response.job_id(), None);
    }
    assert_stored_is_accepted(&stack).await;
}

#[tokio::test]
async fn requests_to_the_wrong_place_or_of_the_wrong_kind() {
    let stack = api().await;
    let client = &stack.client;
    let good = || Webhook::to(TARGET).body();
    let typed = |content_type: &str| retyped(client, good(), content_type);
    let unknown = uuid::Uuid::now_v7();
    let token = client.api_token();
    let rows: Vec<(&str, RequestBuilder, u16, &str)> = vec![
        ("unknown path", client.get("/nowhere"), 404, "not_found"),
        ("GET instead of POST", client.get("/webhooks"), 405, "method_not_allowed"),
        ("no token", client.get(&format!("/webhooks/{unknown}")), 401, "unauthorized"),
        (
            "wrong token",
            client.get(&format!("/webhooks/{unknown}")).bearer_auth("x".repeat(token.len())),
            401,
            "unauthorized",
        ),
        ("unknown job", client.get(&format!("/webhooks/{unknown}")).bearer_auth(token), 404, "not_found"),
        ("malformed job id", client.get("/webhooks/1%20OR%201").bearer_auth(token), 404, "not_found"),
        ("no content type", typed(""), 415, "unsupported_media_type"),
        ("a form", typed("application/x-www-form-urlencoded"), 415, "unsupported_media_type"),
        ("text", typed("text/plain"), 415, "unsupported_media_type"),
        ("compressed", client.request(good()).header("Content-Encoding", "gzip"), 415, "unsupported_media_type"),
        ("one byte too long", client.request(vec![b' '; MAX_BODY_BYTES + 1]), 413, "body_too_large"),
    ];
    for (case, request, status, code) in rows {
        assert_error(case, &send(request).await.expect(case), status, code);
    }
    let longest = format!("{}{}", good(), " ".repeat(MAX_BODY_BYTES - good().len()));
    client.try_post(longest, None).await.expect("a body of just the limit is accepted");
    let charset = send(typed("application/json; charset=utf-8")).await.expect("an answer");
    client.remember(charset.job_id(), None);
    assert_eq!(client.accepted().len(), 2);
    assert_stored_is_accepted(&stack).await;
}

/// The signed request with another content type, or none.
fn retyped(client: &Client, body: String, content_type: &str) -> RequestBuilder {
    let url = format!("{}/webhooks", client.url());
    let signature = client.sign(body.as_bytes());
    let request = reqwest::Client::builder().no_proxy().build().expect("a client").request(Method::POST, url);
    let request = request.header("X-Signature", signature).body(body);
    if content_type.is_empty() { request } else { request.header("Content-Type", content_type) }
}

/// Sends raw bytes and reads until the api closes the connection, or for as long as it may take.
async fn raw(stack: &Stack, parts: &[&[u8]], pause: Duration) -> (String, Duration) {
    let address = stack.client.url().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(address).await.expect("the api listens");
    let started = Instant::now();
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let writing = async {
        for part in parts {
            if writer.write_all(part).await.is_err() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        // Stays open: an end of our side would be another case.
        std::future::pending::<()>().await;
    };
    let reading = timeout(TIMEOUT + SLACK, reader.read_to_end(&mut answer));
    let ended = tokio::select! {
        ended = reading => ended,
        () = writing => unreachable!("writing waits for ever"),
    };
    assert!(ended.is_ok(), "the connection was not closed: {}", String::from_utf8_lossy(&answer));
    (String::from_utf8_lossy(&answer).into_owned(), started.elapsed())
}

fn status_of(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

const HEAD: &[u8] = b"POST /webhooks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n";

#[tokio::test]
async fn http_that_is_broken() {
    let stack = api().await;
    let headers = "X-A: 1\r\n".repeat(101);
    let too_long = format!("{:x}\r\n{}\r\n0\r\n\r\n", MAX_BODY_BYTES + 1, " ".repeat(MAX_BODY_BYTES + 1));
    let rows: Vec<(&str, Vec<u8>, u16)> = vec![
        ("a body shorter than its length", [HEAD, b"Content-Length: 100\r\n\r\n{}"].concat(), 408),
        ("a bad chunk", [HEAD, b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"].concat(), 400),
        ("chunks over the limit", [HEAD, b"Transfer-Encoding: chunked\r\n\r\n", too_long.as_bytes()].concat(), 413),
        ("two lengths", [HEAD, b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"].concat(), 400),
        ("a length that is none", [HEAD, b"Content-Length: +2\r\n\r\n{}"].concat(), 400),
        ("over 100 headers", [HEAD, headers.as_bytes(), b"\r\n"].concat(), 431),
        ("no HTTP", b"hello\r\n\r\n".to_vec(), 400),
    ];
    for (case, request, status) in rows {
        let (answer, _) = raw(&stack, &[&request], Duration::ZERO).await;
        assert_eq!(status_of(&answer), Some(status), "{case}: {answer}");
    }
    assert_stored_is_accepted(&stack).await;
}

/// The decision 0005: whichever stands first, the chunks are the body and the length is nothing.
#[tokio::test]
async fn chunks_with_a_length_are_read_as_chunks() {
    let stack = api().await;
    let body = Webhook::to(TARGET).body();
    let signature = format!("X-Signature: {}\r\n", stack.client.sign(body.as_bytes()));
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    for lengths in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
    ] {
        let request = [HEAD, signature.as_bytes(), lengths.as_bytes(), chunks.as_bytes()].concat();
        let (answer, _) = raw(&stack, &[&request], Duration::ZERO).await;
        assert_eq!(status_of(&answer), Some(202), "{lengths:?}: {answer}");
    }
}

#[tokio::test]
async fn silent_and_slow_connections_are_closed_in_time() {
    let stack = api().await;
    let drip: Vec<&[u8]> = vec![b"{"; 100];
    let slow_body = [vec![HEAD, b"Content-Length: 100\r\n\r\n"], drip.clone()].concat();
    let slow_head = [vec![&b"POST /webhooks HTTP/1.1\r\nX-A: "[..]], drip].concat();
    let silent: Vec<&[u8]> = vec![];
    let idle: Vec<&[u8]> = vec![b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"];
    let kinds = [(&slow_body, Some(408)), (&slow_head, None), (&silent, None), (&idle, Some(200))];
    let pause = TIMEOUT / 4;
    // Three of each kind. The api has room for them and for others: nobody is closed before the time.
    let sockets = kinds.iter().cycle().take(12).map(|(parts, _)| raw(&stack, parts, pause));
    let others = async { stack.client.post("{}", TARGET).await };
    let (closed, _) = tokio::join!(futures_util::future::join_all(sockets), others);
    for ((_, status), (answer, after)) in kinds.iter().cycle().zip(&closed) {
        assert!(*after < TIMEOUT + SLACK);
        assert!(status_of(answer) == *status || status.is_none(), "{answer}");
    }
    assert_stored_is_accepted(&stack).await;
}

/// A caller who keeps connections must not find out with its next request that this one is gone.
#[tokio::test]
async fn an_answer_before_the_body_was_read_says_that_it_ends_the_connection() {
    let stack = api().await;
    let json = "Content-Type: application/json";
    for (head, status) in [
        (format!("POST /webhooks HTTP/1.1\r\n{json}"), "413"),
        ("POST /webhooks HTTP/1.1\r\nContent-Type: text/plain".to_owned(), "415"),
        (format!("PUT /destinations/keys HTTP/1.1\r\n{json}"), "401"),
        (format!("PUT /webhooks HTTP/1.1\r\n{json}"), "405"),
        (format!("POST /nowhere HTTP/1.1\r\n{json}"), "404"),
    ] {
        let request = format!("{head}\r\nHost: x\r\nContent-Length: {}\r\n\r\n{{", 4 * MAX_BODY_BYTES);
        let (answer, _) = raw(&stack, &[request.as_bytes()], Duration::ZERO).await;
        let answer = answer.to_lowercase();
        assert!(answer.starts_with(&format!("http/1.1 {status}")), "{head}: {answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{head}: {answer}");
    }
    // And not otherwise.
    let bad = send(stack.client.request(Webhook::to("nowhere"))).await.expect("the api answers");
    assert_eq!((bad.status, bad.headers.get("connection")), (422, None));
    assert_stored_is_accepted(&stack).await;
}

/// Most clients read no answer before they have sent all: the connection must last until then.
#[tokio::test]
async fn a_caller_may_send_a_body_to_its_end_that_was_refused_at_its_beginning() {
    let stack = api().await;
    let address = stack.client.url().trim_start_matches("http://").to_owned();
    let piece = vec![b'x'; 64 * 1_024];
    let mut stream = TcpStream::connect(address).await.expect("the api listens");
    let head = format!(
        "POST /webhooks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        64 * piece.len()
    );
    stream.write_all(head.as_bytes()).await.expect("the api reads it");
    for sent in 0..64 {
        stream.write_all(&piece).await.unwrap_or_else(|error| panic!("after {sent} pieces: {error}"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stream.shutdown().await.expect("it is open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("the answer comes before the end");
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_stored_is_accepted(&stack).await;
}
