//! Bodies that are signed and wrong: no JSON, or wrong in one field.

use harness::client::{body, send};
use serde_json::{Value, json};

use super::{TARGET, api, assert_error, assert_stored_is_accepted};

#[tokio::test]
async fn json_that_is_malformed() {
    let stack = api().await;
    let good = body("{}", TARGET, "");
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("cut off", good.as_bytes()[..good.len() - 1].to_vec()),
        ("trailing bytes", format!("{good}x").into_bytes()),
        ("two texts", format!("{good}{good}").into_bytes()),
        ("byte order mark", [b"\xef\xbb\xbf", good.as_bytes()].concat()),
        (
            "invalid UTF-8",
            good.replace("{}", "\"x\"").into_bytes().into_iter().map(|b| if b == b'x' { 0xff } else { b }).collect(),
        ),
        ("NaN", body("[NaN]", TARGET, "").into_bytes()),
        ("half an escape", body(r#"{"a":"\ud8"}"#, TARGET, "").into_bytes()),
        ("malformed behind a wrong field", format!("{}}}", body("7", TARGET, "")).into_bytes()),
    ];
    for (case, body) in rows {
        let response = send(stack.client.request(body)).await.expect(case);
        assert_error(case, &response, 400, "malformed_json");
    }
    assert_stored_is_accepted(&stack).await;
}

/// Each is well-formed, and wrong in one field.
#[allow(clippy::too_many_lines, reason = "it is a table")]
fn bad_fields() -> Vec<(String, String)> {
    let long_url = format!("http://example.com/{}", "a".repeat(2_048));
    let many_headers: Value =
        (0..33).map(|n| (format!("x-{n}"), Value::from("v"))).collect::<serde_json::Map<_, _>>().into();
    let long_headers = json!({ "x-a": "v".repeat(8_192) });
    let field = |field: &str| body("{}", TARGET, &format!(",{field}"));
    let url = |url: &str| body("{}", url, "");
    let mut rows: Vec<(String, String)> = vec![
        ("unknown field".into(), field(r#""priority":1"#)),
        ("top-level array".into(), format!("[{}]", body("{}", TARGET, ""))),
        ("no payload".into(), json!({ "client_url": TARGET }).to_string()),
        ("no client_url".into(), json!({ "payload": {} }).to_string()),
        ("payload null".into(), body("null", TARGET, "")),
        ("payload a number".into(), body("1", TARGET, "")),
        ("payload true".into(), body("true", TARGET, "")),
        ("payload with U+0000".into(), body(r#""a\u0000b""#, TARGET, "")),
        ("client_url a number".into(), json!({ "payload": {}, "client_url": 1 }).to_string()),
        ("max_attempts 0".into(), field(r#""max_attempts":0"#)),
        ("max_attempts -1".into(), field(r#""max_attempts":-1"#)),
        ("max_attempts 1e9".into(), field(r#""max_attempts":1e9"#)),
        ("max_attempts 101".into(), field(r#""max_attempts":101"#)),
        ("timeout_ms 99".into(), field(r#""timeout_ms":99"#)),
        ("timeout_ms 300001".into(), field(r#""timeout_ms":300001"#)),
        ("timeout_ms -1".into(), field(r#""timeout_ms":-1"#)),
        ("ordering_key empty".into(), field(r#""ordering_key":"" "#)),
        ("ordering_key of 256 bytes".into(), field(&format!(r#""ordering_key":"{}""#, "k".repeat(256)))),
        ("ordering_key with U+0000".into(), field(r#""ordering_key":"\u0000""#)),
        ("ordering_key a number".into(), field(r#""ordering_key":7"#)),
        ("max_attempts a string".into(), field(r#""max_attempts":"3""#)),
        ("deliver_at in year 9999".into(), field(r#""deliver_at":"9999-12-31T23:59:59Z""#)),
        ("deliver_at garbage".into(), field(r#""deliver_at":"tomorrow""#)),
        ("deliver_at a number".into(), field(r#""deliver_at":1"#)),
        ("headers a list".into(), field(r#""headers":[]"#)),
        ("a header that is a number".into(), field(r#""headers":{"x-a":1}"#)),
        ("33 headers".into(), field(&format!(r#""headers":{many_headers}"#))),
        ("8 KiB of headers".into(), field(&format!(r#""headers":{long_headers}"#))),
        ("a header twice".into(), field(r#""headers":{"x-a":"1","X-A":"2"}"#)),
        ("a header with CR LF".into(), field(r#""headers":{"x-a":"1\r\nx-b: 2"}"#)),
        ("a header name with a space".into(), field(r#""headers":{"x a":"1"}"#)),
        ("an empty header name".into(), field(r#""headers":{"":"1"}"#)),
    ];
    for name in ["Host", "Content-Length", "Transfer-Encoding", "Connection", "TE", "webhook-id", "Webhook-Signature"] {
        rows.push((format!("header {name}"), field(&format!(r#""headers":{{"{name}":"1"}}"#))));
    }
    for bad in [
        "",
        "/hook",
        "example.com",
        "ftp://example.com",
        "http://",
        "http:/\\127.0.0.1",
        "http://user@example.com",
        "http://example.com/#top",
        "http://example.com:0",
        "http://example.com:65536",
        "http://exam\tple.com",
        "http://example.com/\r\nx",
        &long_url,
    ] {
        rows.push((format!("client_url {bad:?}"), url(bad)));
    }
    // Loopback is allowed to the stack; the other private networks are not.
    for host in [
        "10.0.0.1",
        "167772161",
        "0x0a000001",
        "0xa.1",
        "012.0.0.1",
        "10.1",
        "0",
        "10.0.0.1.",
        "１０.0.0.1",
        "10。0。0。1",
        "%31%30.0.0.1",
        "169.254.169.254",
        "192.168.0.1",
        "172.31.255.255",
        "100.64.0.1",
        "[::1]",
        "[::]",
        "[::ffff:a00:1]",
        "[64:ff9b::a00:1]",
        "[2002:a00:1::]",
        "[fe80::1]",
        "[fc00::1]",
        "224.0.0.1",
    ] {
        rows.push((format!("client_url to {host}"), url(&format!("http://{host}/"))));
    }
    rows
}

#[tokio::test]
async fn fields_that_are_wrong() {
    let stack = api().await;
    for (case, body) in bad_fields() {
        let response = send(stack.client.request(body)).await.expect("an answer");
        assert_eq!(response.status, 422, "{case}: {}", response.body);
        assert_eq!(response.json()["error"]["code"], "invalid_field", "{case}: {}", response.body);
    }
    for (case, key) in [("empty", String::new()), ("256 bytes", "k".repeat(256))] {
        let request = stack.client.request(body("{}", TARGET, "")).header("Idempotency-Key", key);
        let response = send(request).await.expect("an answer");
        assert_error(&format!("an idempotency key of {case}"), &response, 422, "invalid_field");
    }
    assert_stored_is_accepted(&stack).await;
}
