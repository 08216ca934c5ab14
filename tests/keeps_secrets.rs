//! A secret that was handed over is never seen again: not in psql, not in a log, not in an answer. Without a key to
//! seal it with it is not taken at all.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use harness::certificates::Authority;
use harness::client::send;
use harness::signing::{random_key, stack, v1_key, v1a_key};
use harness::{PATIENCE, RawServer, Stack, Webhook};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

const GITHUB: &str = "It's a Secret to Everybody";

/// Every form in which a secret could turn up: its text, that without its prefix, and its bytes in hexadecimal.
fn traces(secret: &str) -> Vec<String> {
    let bare = secret.rsplit('_').next().expect("splitting gives one part at least");
    let mut traces = vec![bare.to_owned(), hex::encode(secret), hex::encode(bare)];
    traces.extend(BASE64_STANDARD.decode(bare).map(hex::encode));
    traces
}

/// All rows of all tables and views of the database, as psql shows them.
async fn all_rows(stack: &Stack) -> String {
    let tables = "SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables
                  WHERE table_schema IN ('public', 'outhook', 'harness')";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(stack.pool()).await.expect("tables");
    assert!(tables.contains(&"public.destination_keys".to_owned()), "{tables:?}");
    let mut rows: Vec<String> = Vec::new();
    for table in tables {
        let select = AssertSqlSafe(format!("SELECT it::text FROM {table} AS it"));
        rows.extend(sqlx::query_scalar::<_, String>(select).fetch_all(stack.pool()).await.expect("rows"));
    }
    rows.join("\n")
}

/// An answer to a request with the token, whatever it is.
async fn answer(stack: &Stack, path: &str) -> String {
    send(stack.client.authorized(Method::GET, path)).await.expect("the api answers").body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_seen_in_psql_logs_or_answers() {
    let sealing = random_key();
    let verbose = "debug,lapin=info";
    let stack = stack().env("SECRETS_KEY", &sealing).env("RUST_LOG", verbose).start().await;
    let (v1, v1a, own, refused) = (v1_key(), v1a_key(), v1_key(), v1_key());
    let url = stack.receiver_url("?fail_times=1");
    let mut answers = Vec::new();
    for (scheme, secret) in [("v1", v1.as_str()), ("v1a", &v1a), ("github", GITHUB)] {
        let set = json!({ "client_url": url, "scheme": scheme, "secret": secret });
        answers.push(stack.client.put_key(&set).await.body);
    }
    let accepted = stack.client.post_webhook(&Webhook::to(&url).signing_secret(&own)).await;
    stack.client.post("{}", &url).await;
    // One that is refused must not be repeated either.
    for (name, value) in [("overlap_sec", json!(-1)), ("scheme", json!("v1a")), ("destination", json!(url))] {
        let mut set = json!({ "client_url": url, "scheme": "v1", "secret": refused });
        set[name] = value;
        let response = stack.client.put_key(&set).await;
        assert_eq!(response.status, 422, "{}", response.body);
        answers.push(response.body);
    }
    let broken = Webhook::to(&url).signing_secret(&format!("{refused}!"));
    answers.push(send(stack.client.request(broken)).await.expect("an answer").body);
    stack.wait_until_drained(PATIENCE).await;

    answers.push(answer(&stack, &format!("/webhooks/{}", accepted.job_id)).await);
    answers.push(answer(&stack, &format!("/destinations/keys?client_url={url}")).await);
    answers.push(answer(&stack, "/metrics").await);
    let shown = stack.client.job(accepted.job_id).await;
    assert!(shown.get("sealed_key").is_none(), "not even sealed: {shown}");
    let processes = stack.apis.iter().chain(&stack.relays).chain(&stack.workers);
    let logs: Vec<(String, String)> = processes.map(|it| (format!("the log of {}", it.name()), it.log())).collect();
    assert!(logs[0].1.contains("signing key of a destination"), "a change leaves its trace: {}", logs[0].1);
    let places = [("the database".to_owned(), all_rows(&stack).await), ("the answers".to_owned(), answers.join("\n"))];
    for secret in [&v1, &v1a, GITHUB, &own, &refused, &sealing] {
        for (place, text) in places.iter().chain(&logs) {
            for trace in traces(secret) {
                assert!(!text.contains(&trace), "{place} holds a secret");
            }
        }
    }
    stack.finish().await;
}

/// Libraries say which host they connect to, resolve or have a certificate of, and what they send to Postgres.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_host_is_named_in_a_log_however_much_is_logged() {
    let authority = Authority::new();
    let roots = tempfile::NamedTempFile::new().expect("there is room for a file");
    std::fs::write(roots.path(), authority.pem()).expect("there is room for it");
    let stack = Stack::builder()
        .env("RUST_LOG", "trace")
        .env("MAX_RETRIES", "1")
        .worker_env("EGRESS_CA_FILE", roots.path().to_str().expect("the path is text"))
        .start()
        .await;
    let (good, bad) =
        (authority.issue("localhost").serve(None).await, authority.issue("other.example").serve(None).await);
    let https = |server: &RawServer| server.url().replace("http://127.0.0.1", "https://localhost");
    for url in [https(&good), https(&bad), "http://receiver.invalid/hook".to_owned()] {
        stack.client.post("{}", &url).await;
    }
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(good.requests().len(), 1);
    for process in stack.apis.iter().chain(&stack.relays).chain(&stack.workers) {
        let log = process.log();
        for host in ["localhost", "receiver.invalid", "other.example"] {
            let line = log.lines().find(|line| line.contains(host));
            assert_eq!(line, None, "{} names a host", process.name());
        }
    }
    stack.finish_unheard().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_key_to_seal_with_no_secret_is_taken() {
    let stack = Stack::start().await;
    let url = stack.receiver_url("");
    let refused = [
        stack.client.put_key(&json!({ "client_url": url, "scheme": "v1", "secret": v1_key() })).await,
        send(stack.client.request(Webhook::to(&url).signing_secret(&v1_key()))).await.expect("an answer"),
    ];
    for response in refused {
        assert_eq!(response.status, 501, "{}", response.body);
        let error = &response.json()["error"];
        assert_eq!(error["code"], "secrets_key_missing");
        assert_eq!(error["message"], "this service stores no secrets: its SECRETS_KEY is not set");
    }
    let stored = "SELECT (SELECT count(*) FROM webhook_jobs) + (SELECT count(*) FROM destination_keys)";
    assert_eq!(stack.count(stored).await, 0);
    assert!(stack.client.keys(&url).await.is_empty());
    stack.post("{}", "").await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_for_keys_that_are_wrong() {
    let stack = stack().relays(0).workers(0).start().await;
    let good = json!({ "client_url": "https://example.com/a", "scheme": "v1", "secret": v1_key() });
    let with = |name: &str, value: Value| {
        let mut changed = good.clone();
        changed[name] = value;
        changed
    };
    let without = |name: &str| {
        let mut changed = good.clone();
        changed.as_object_mut().expect("an object").remove(name);
        changed
    };
    for wrong in [
        without("client_url"),
        without("scheme"),
        without("secret"),
        json!([good.clone()]),
        with("destination", json!("https://example.com")),
        with("client_url", json!("example.com")),
        with("client_url", json!("http://10.0.0.1/")),
        with("client_url", json!("http://user@example.com/")),
        with("scheme", json!("v2")),
        with("scheme", json!("v1a")),
        with("secret", json!("whsec_AAAA")),
        with("secret", json!(7)),
        with("overlap_sec", json!(-1)),
        with("overlap_sec", json!(1e12)),
        with("priority", json!(1)),
    ] {
        let response = stack.client.put_key(&wrong).await;
        assert_eq!((response.status, &response.json()["error"]["code"]), (422, &"invalid_field".into()), "{wrong}");
    }
    for query in [
        "",
        "?destination=https://a.example&client_url=https://b.example",
        "?dest=https://example.com",
        "?destination=x",
    ] {
        let request = stack.client.authorized(Method::GET, &format!("/destinations/keys{query}"));
        assert_eq!(send(request).await.expect("an answer").status, 422, "{query}");
    }
    let id = Uuid::now_v7();
    for (method, path) in [
        (Method::PUT, "/destinations/keys".to_owned()),
        (Method::GET, "/destinations/keys?destination=https://example.com".to_owned()),
        (Method::DELETE, format!("/destinations/keys/{id}")),
    ] {
        for token in ["x".repeat(32), String::new()] {
            let request = stack.client.authorized(method.clone(), &path);
            let (client, request) = request.build_split();
            let mut request = request.expect("a request");
            request.headers_mut().remove("authorization");
            let request =
                reqwest::RequestBuilder::from_parts(client, request).bearer_auth(token).body(good.to_string());
            assert_eq!(send(request).await.expect("an answer").status, 401, "{method} {path}");
        }
    }
    assert_eq!(stack.count("SELECT count(*) FROM destination_keys").await, 0);

    // The same destination however its URL is written.
    let response = stack.client.put_key(&with("client_url", json!("https://EXAMPLE.com:443/hook?x=1"))).await;
    assert_eq!(response.json()["destination"], "https://example.com");
    assert_eq!(stack.client.keys("https://example.com/other").await.len(), 1);
    assert_eq!(stack.client.keys("http://example.com/").await.len(), 0);
}
