//! The URL that is posted to is the one that was accepted, byte for byte in path and query, and is shown as it is sent; or it
//! is refused. HTTP and SQL agree on that.

use std::collections::HashMap;

use harness::attempts::enqueue;
use harness::client::send;
use harness::{PATIENCE, RawServer, Stack, Webhook};
use sqlx::PgPool;
use uuid::Uuid;

/// Paths and queries that are sent as they are written.
const KEPT: [&str; 11] = [
    "",
    "/",
    "/hook",
    "?a=b",
    "/?",
    "/a//b/...?",
    "/%7e%2F%41.%2e.b%zz%",
    "/!$&'()*+,-.:;=@[]^_|~",
    "/%C3%A9?%C3%BC=%27",
    "/?a/../b/%2e%2e/!$&()*+,-./:;=?@[\\]^_`{|}~",
    "/workflows/0a/triggers/manual/paths/invoke?api-version=2016-10-01&sp=%2Ftriggers%2Fmanual%2Frun&sig=a-b_c",
];

/// Those that are not, and what is said of them.
const REFUSED: [(&str, &str); 17] = [
    ("/a/../b", "a segment . or .."),
    ("/a/%2e%2E/b", "a segment . or .."),
    ("/.", "a segment . or .."),
    ("/%2E?x", "a segment . or .."),
    ("/a\\b", "must have %5C in place of \\"),
    ("\\a", "must have %5C in place of \\"),
    ("/{id}", "must have %7B in place of {"),
    ("/id}", "must have %7D in place of }"),
    ("/`", "must have %60 in place of `"),
    ("/a\"b", "must have %22 in place of \""),
    ("/<a>", "must have %3C in place of <"),
    ("/?q='a'", "must have %27 in place of '"),
    ("?q=\"", "must have %22 in place of \""),
    ("/?>", "must have %3E in place of >"),
    ("/caf\u{e9}", "must have %C3%A9 in place of \u{e9}"),
    ("/?stra\u{df}e", "must have %C3%9F in place of \u{df}"),
    ("/a#b", "contains a fragment"),
];

/// What was posted for each job: the line's path and query, as they came.
fn targets(server: &RawServer) -> HashMap<Uuid, String> {
    let requests = server.requests();
    let one = |request: &String| {
        let id = request.lines().find_map(|line| line.strip_prefix("x-webhook-job-id: ")).expect("the job's id");
        let target = request.strip_prefix("POST ").and_then(|rest| rest.split(' ').next()).expect("a request line");
        (id.trim().parse().expect("a UUID"), target.to_owned())
    };
    requests.iter().map(one).collect()
}

/// A job's URL as psql shows it.
async fn stored_url(pool: &PgPool, job_id: Uuid) -> String {
    sqlx::query_scalar("SELECT client_url FROM outhook.jobs WHERE id = $1")
        .bind(job_id)
        .fetch_one(pool)
        .await
        .expect("it is there")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn path_and_query_are_sent_as_they_were_written_or_refused() {
    let stack = Stack::start().await;
    let server = RawServer::answering("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
    let origin = format!("http://{}", server.address());
    let mut expected = HashMap::new();
    for written in KEPT {
        let url = format!("{origin}{written}");
        let sent = if written.starts_with('/') { written.to_owned() } else { format!("/{written}") };
        // Scheme and host in another spelling as well: the receiver's port makes the difference that there is.
        let shouted = url.replacen("http", "HTTP", 1);
        for (url, by_sql) in [(&url, false), (&shouted, false), (&url, true), (&shouted, true)] {
            let job_id = if by_sql {
                enqueue(stack.pool(), url, "{}").await.unwrap_or_else(|error| panic!("{url}: {error}"))
            } else {
                stack.client.post("{}", url).await.job_id
            };
            assert_eq!(stack.client.job(job_id).await["client_url"], format!("{origin}{sent}"), "GET, {url}");
            assert_eq!(stored_url(stack.pool(), job_id).await, format!("{origin}{sent}"), "psql, {url}");
            expected.insert(job_id, sent.clone());
        }
    }
    for (written, said) in REFUSED {
        let url = format!("{origin}{written}");
        let response = send(stack.client.request(Webhook::to(&url))).await.expect("the api answers");
        assert_eq!(response.status, 422, "{url}: {}", response.body);
        let message = response.json()["error"]["message"].as_str().expect("a message").to_owned();
        assert!(message.starts_with("client_url: the URL") && message.contains(said), "{url}: {message}");
        let error = enqueue(stack.pool(), &url, "{}").await.expect_err(&url).to_string();
        assert!(error.contains("client_url ") && error.contains(said), "{url}: {error}");
    }
    stack.wake().await;
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(targets(&server), expected);
    stack.finish_unheard().await;
}

/// Spellings of hosts, names and addresses, right and wrong.
const HOSTS: [&str; 46] = [
    "example.com",
    "EXAMPLE.Com",
    "example.com.",
    "a_b-c.example",
    "-a-",
    "b\u{fc}cher.example",
    "xn--bcher-kva.example",
    "ex%61mple.com",
    "\u{ff45}xample.com",
    "I\u{307}.example",
    "\u{212a}.example",
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "2130706433",
    "0x7f.1",
    "0x",
    "0177.0.0.1",
    "127.00.0.1",
    "09.1.1.1",
    "256.0.0.1",
    "1.2.3.4.5",
    "a.1",
    "a.0x1f",
    "a.0xg",
    "1e3",
    "127.0.0.1.a",
    "\u{ff11}27.0.0.1",
    "127\u{3002}0.0.1",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[2001:DB8::A]",
    "[2001:db8:0:0:1::a]",
    "[2001:db8::1:0:0:a]",
    "[1:2:3:4:5:6:0:8]",
    "[1::2::3]",
    "[::1%25eth0]",
    "[127.0.0.1]",
    "[]",
    "",
    ".",
    "a..b",
    ".a",
    "a!b",
    "a{b}",
    "x@example.com",
];

const PORTS: [&str; 11] = ["", ":", ":80", ":443", ":0443", ":8080", ":0", ":65535", ":65536", ":99999999999", ":x"];

/// All that the two are asked about.
fn corpus() -> Vec<String> {
    let mut urls: Vec<String> = HOSTS.iter().map(|host| format!("http://{host}:8080/hook")).collect();
    for scheme in ["http", "HTTPS", "ftp"] {
        urls.extend(PORTS.iter().map(|port| format!("{scheme}://example.com{port}/hook")));
    }
    urls.extend(PORTS.iter().map(|port| format!("https://[2001:db8::a]{port}")));
    urls.extend(
        ["", "example.com", "http:example.com", "http:/example.com", "http:///example.com", "http://"]
            .map(String::from),
    );
    urls.extend(
        [" http://example.com/", "http://example.com/\n", "http://exam\tple.com/", "http://example.com/a b"]
            .map(String::from),
    );
    // As long as a URL may be, with its path and without.
    for length in [2_048, 2_049] {
        urls.push(format!("http://example.com/{}", "a".repeat(length - 19)));
        urls.push(format!("http://{}.com", "a".repeat(length - 12)));
    }
    urls
}

/// What is stored, as URL and destination; or why nothing is.
async fn by_http(stack: &Stack, url: &str) -> Result<(String, String), String> {
    let response = send(stack.client.request(Webhook::to(url))).await.expect("the api answers");
    match response.status {
        202 => Ok(stored(stack.pool(), response.job_id()).await),
        422 => Err(response.body),
        _ => panic!("{url}: {}", response.body),
    }
}

async fn by_sql(pool: &PgPool, url: &str) -> Result<(String, String), String> {
    match enqueue(pool, url, "{}").await {
        Ok(job_id) => Ok(stored(pool, job_id).await),
        Err(error) => {
            let database_error = error.as_database_error().expect("Postgres said it");
            assert_eq!(database_error.code().as_deref(), Some("22023"), "{url}: {error}");
            assert!(database_error.message().starts_with("client_url "), "{url}: {error}");
            Err(database_error.message().to_owned())
        }
    }
}

async fn stored(pool: &PgPool, job_id: Uuid) -> (String, String) {
    let statement = "SELECT client_url, destination FROM webhook_jobs AS job JOIN outbox ON outbox.job_id = job.id WHERE job.id = $1";
    sqlx::query_as(statement).bind(job_id).fetch_one(pool).await.expect("both rows are there")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_stores_a_url_as_http_does_or_refuses_it() {
    let builder = Stack::builder().relays(0).workers(0);
    let stack = builder.env("ALLOW_NETWORKS", "0.0.0.0/0,::/0").start().await;
    let mut wrong = Vec::new();
    let mut told = 0;
    for url in corpus() {
        match (by_http(&stack, &url).await, by_sql(stack.pool(), &url).await) {
            (Ok(http), Ok(sql)) if http == sql => {}
            (Err(_), Err(_)) => {}
            // It cannot do all that the api does, but takes what that makes of it.
            (Ok(http), Err(said)) => {
                told += 1;
                match by_sql(stack.pool(), &http.0).await {
                    Ok(sql) if http == sql => {}
                    other => wrong.push(format!("{url}: {http:?}, but in SQL {other:?} ({said})")),
                }
            }
            (http, sql) => wrong.push(format!("{url}: by HTTP {http:?}, by SQL {sql:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!((5..20).contains(&told), "SQL refuses {told} that the api takes");
}

/// Whoever sets a limit for another destination than is sent to has set none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_is_of_the_destination_that_is_sent_to_or_refused() {
    let stack = Stack::builder().relays(0).workers(0).start().await;
    let limit = async |url: Option<&str>, per_second: Option<i32>| -> Result<String, String> {
        let statement = sqlx::query_scalar("SELECT outhook.limit_destination($1, $2)").bind(url).bind(per_second);
        statement.fetch_one(stack.pool()).await.map_err(|error: sqlx::Error| {
            let error = error.into_database_error().expect("Postgres said it");
            assert_eq!(error.code().as_deref(), Some("22023"), "{error}");
            error.message().to_owned()
        })
    };
    for (url, destination) in [
        ("https://Example.com:443/hook?a", "https://example.com"),
        ("HTTP://127.0.0.1", "http://127.0.0.1"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
    ] {
        assert_eq!(limit(Some(url), Some(10)).await.as_deref(), Ok(destination), "{url}");
        assert_eq!(limit(Some(url), None).await.as_deref(), Ok(destination), "{url}");
    }
    for (url, per_second, said) in [
        (Some("http://127.1/"), Some(1), "client_url must have its address written as in 192.0.2.1"),
        (Some("https://b\u{fc}cher.example"), Some(1), "client_url must have a host of ASCII letters"),
        (Some("example.com"), Some(1), "client_url is not an absolute http or https URL"),
        (Some("http://user@example.com"), Some(1), "client_url is not an absolute http or https URL without user info"),
        (None, Some(1), "client_url must not be NULL"),
        (None, None, "client_url must not be NULL"),
        (Some("https://example.com"), Some(0), "per_second must be at least 1, or NULL"),
    ] {
        let error = limit(url, per_second).await.expect_err(said);
        assert!(error.starts_with(said), "{url:?}: {error}");
    }
    assert_eq!(stack.count("SELECT count(*) FROM destinations").await, 4);
}
