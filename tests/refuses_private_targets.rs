//! Nothing behind the workers is reached by way of a URL: not at the door, and not by whoever gets past it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use harness::attempts::{attempts, enqueue, insert, status_and_error};
use harness::client::send;
use harness::{PATIENCE, RawServer, Stack, Webhook, wait_until};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use uuid::Uuid;

/// Every spelling of an address on this machine, and of some that are nobody's to reach.
const HOSTS: [&str; 38] = [
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "127.1",
    "0",
    "0.0.0.0",
    "127.0.0.1",
    "127.0.0.1.",
    "127.255.255.254",
    "１２７.０.０.１",
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
    "%31%32%37.0.0.1",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::]",
    "[::ffff:7f00:1]",
    "[::ffff:127.0.0.1]",
    "[::127.0.0.1]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[fe80::1]",
    "[fd00::1]",
    "localhost",
    "LocalHost",
    "localhost.",
    "a.localhost",
    "a.localhost.",
    "10.0.0.1",
    "100.64.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.168.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
];

/// On every address of this machine; answers with 200 whoever gets through.
async fn listener() -> RawServer {
    // Both families where there are two.
    let socket = match TcpListener::bind("[::]:0").await {
        Ok(socket) => socket,
        Err(_) => TcpListener::bind("0.0.0.0:0").await.expect("there are free ports"),
    };
    RawServer::on(socket, |mut connection| async move {
        connection.request().await?;
        connection.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await
    })
}

/// The list, with this port, and what is no spelling of a host but of a URL.
fn urls(port: u16) -> Vec<String> {
    let mut urls: Vec<String> = HOSTS.iter().map(|host| format!("http://{host}:{port}/hook")).collect();
    urls.push(format!("HTTP://127.0.0.1:{port}"));
    urls.push(format!("https://127.0.0.1:{port}/hook"));
    urls.push(format!("http://x@127.0.0.1:{port}/hook"));
    urls.push(format!("http://example.com@127.0.0.1:{port}/hook"));
    urls.push(format!("http:/\\127.0.0.1:{port}/hook"));
    urls.push(format!("http:\\\\127.0.0.1:{port}/hook"));
    urls.push(format!("http:127.0.0.1:{port}/hook"));
    urls.push(format!("http:///127.0.0.1:{port}/hook"));
    urls.push(format!("http://127.0.0.1:{port}/hook#fragment"));
    urls
}

/// Names that lead to this machine without saying so: only a resolver knows.
fn names_of_this_machine() -> BTreeSet<String> {
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
    let is_loopback = |address: &str| address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let names = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|address| is_loopback(address)).map(|_| words)
    });
    names.flatten().filter(|name| *name != "localhost" && !name.ends_with(".localhost")).map(str::to_owned).collect()
}

async fn stack() -> Stack {
    Stack::builder().env("ALLOW_NETWORKS", "").start().await
}

/// The job failed for good at its first attempt, and says why wherever somebody may look.
async fn assert_refused(stack: &Stack, job_id: Uuid, url: &str) -> String {
    let (status, error) = status_and_error(stack.pool(), job_id).await;
    assert_eq!(status, "failed", "{url}: {error}");
    assert!(error.starts_with("target refused: the "), "{url}: {error}");
    let attempts = attempts(stack.pool(), job_id).await;
    assert_eq!(attempts.len(), 1, "{url}: {attempts:?}");
    assert_eq!((attempts[0].outcome.as_str(), attempts[0].status_code), ("failed", None), "{url}");
    assert_eq!(attempts[0].error, error, "{url}");
    assert!(attempts[0].retry_at.is_none(), "{url}");
    let log = stack.workers[0].log();
    let line = log.lines().find(|line| line.contains(&job_id.to_string()) && line.contains("target refused: "));
    assert!(line.is_some_and(|line| !line.contains(url)), "{url}: no line of the log, or one with the URL: {line:?}");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_spelling_of_a_private_address_is_refused_at_the_door() {
    let stack = stack().await;
    let listener = listener().await;
    // The service's own address is one of them.
    let own = format!("{}/webhooks", stack.client.url());
    let urls: Vec<String> = urls(listener.address().port()).into_iter().chain([own]).collect();
    for url in &urls {
        let response = send(stack.client.request(Webhook::to(url))).await.expect("the api answers");
        assert_eq!(response.status, 422, "{url}: {}", response.body);
        let message = response.json()["error"]["message"].to_string();
        assert!(message.contains("client_url: the "), "{url}: {message}");
        assert!(!message.contains("127.0.0.1"), "{url}: {message}");
    }
    let refused = stack.apis[0].counter("outhook_api_targets_refused_total").await;
    assert_eq!(refused.to_string(), urls.len().to_string(), "refusals were counted");
    assert_eq!(stack.jobs().await, 0);
    assert_eq!(listener.connections(), 0);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_gets_past_the_door_is_refused_by_the_worker_and_nothing_is_sent() {
    let stack = stack().await;
    let listener = listener().await;
    let port = listener.address().port();
    let mut jobs = Vec::new();
    let own = format!("{}/webhooks", stack.client.url());
    for url in urls(port).into_iter().chain([own]) {
        let stored = match enqueue(stack.pool(), &url, "{}").await {
            Ok(job_id) => Ok(job_id),
            // User info and fragments: only who writes the tables himself gets past this.
            Err(_) => insert(stack.pool(), &url).await,
        };
        match stored {
            Ok(job_id) => jobs.push((job_id, url)),
            Err(error) => assert!(
                error.to_string().contains("webhook_jobs_client_url_is_http") && !url.starts_with("http://"),
                "{url}: {error}"
            ),
        }
    }
    assert!(jobs.len() >= HOSTS.len() + 6, "only {} URLs got past the door", jobs.len());
    for name in names_of_this_machine() {
        let url = format!("http://{name}:{port}/hook");
        // The api does not resolve names: it may take these. They may lead elsewhere later, so there is another attempt.
        jobs.push((stack.client.post_webhook(&Webhook::to(&url).max_attempts(1)).await.job_id, url));
    }
    stack.wait_until_drained(PATIENCE).await;

    for (job_id, url) in &jobs {
        assert_refused(&stack, *job_id, url).await;
    }
    assert_eq!(listener.connections(), 0, "something was connected to");
    let refused = stack.workers[0].counter("outhook_worker_targets_refused_total").await;
    assert_eq!(refused.to_string(), jobs.len().to_string(), "refusals were counted");
    stack.finish().await;
}

/// A name that leads nowhere good may lead elsewhere in a moment, as when a name server is being changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_with_a_private_address_is_tried_again() {
    let stack = stack().await;
    let listener = listener().await;
    for name in names_of_this_machine() {
        let url = format!("http://{name}:{}/hook", listener.address().port());
        let id = stack.client.post("{}", &url).await.job_id;
        wait_until("an attempt", PATIENCE, async || !attempts(stack.pool(), id).await.is_empty()).await;
        let attempt = &attempts(stack.pool(), id).await[0];
        assert!(attempt.error.starts_with("target refused: the ") && attempt.retry_at.is_some(), "{name}: {attempt:?}");
    }
    assert_eq!(listener.connections(), 0, "something was connected to");
    stack.cancel_the_rest().await;
    stack.finish().await;
}

/// The control: the listener of these tests is one that is reached, when that is allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_addresses_are_reached_once_their_network_is_allowed() {
    let stack = Stack::builder().env("ALLOW_NETWORKS", "127.0.0.0/8,::1/128").start().await;
    let listener = listener().await;
    let port = listener.address().port();
    let hosts = ["127.0.0.1", "2130706433", "0177.0.0.1", "１２７.０.０.１", "localhost", "[::ffff:127.0.0.1]"];
    let hosts = hosts.into_iter().map(str::to_owned).chain(names_of_this_machine());
    let mut reached = 0;
    for host in hosts {
        let job_id = stack.client.post("{}", &format!("http://{host}:{port}/hook")).await.job_id;
        stack.wait_until_drained(PATIENCE).await;
        assert_eq!(status_and_error(stack.pool(), job_id).await, ("success".to_owned(), String::new()), "{host}");
        reached += 1;
        assert_eq!(listener.connections(), reached, "{host}");
    }
    stack.finish_unheard().await;
}

/// What a deployment forbids besides: each by the api's answer, and by the worker where the api is not asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_schemes_and_ports_that_are_forbidden_are_refused_at_both_ends() {
    let listener = listener().await;
    let port = listener.address().port();
    let other = if port == 65_535 { 65_534 } else { port + 1 };
    let http = format!("http://127.0.0.1:{port}/hook");
    for (case, variable, value, url, expected) in [
        ("deny_networks", "DENY_NETWORKS", "127.0.0.0/30".to_owned(), &http, "a network that DENY_NETWORKS forbids"),
        ("https_only", "HTTPS_ONLY", "true".to_owned(), &http, "is not https, and HTTPS_ONLY"),
        ("allow_ports", "ALLOW_PORTS", format!("443,{other}"), &http, "port is not one of ALLOW_PORTS"),
    ] {
        let stack = Stack::builder().named(case).env(variable, &value).env("MAX_RETRIES", "1").start().await;
        let response = send(stack.client.request(Webhook::to(url))).await.expect("the api answers");
        assert_eq!(response.status, 422, "{case}: {}", response.body);
        assert!(response.body.contains(expected), "{case}: {}", response.body);

        let job_id = enqueue(stack.pool(), url, "{}").await.expect("SQL takes any http URL");
        // By a resolver, where that can be asked.
        let named = enqueue(stack.pool(), &format!("http://localhost:{port}/hook"), "{}").await.expect("the same");
        stack.wait_until_drained(PATIENCE).await;
        for job_id in [job_id, named] {
            let error = assert_refused(&stack, job_id, url).await;
            assert!(error.contains(expected), "{case}: {error}");
        }
        stack.finish().await;
    }
    assert_eq!(listener.connections(), 0);
}
