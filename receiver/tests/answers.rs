//! What a sender sees of the receiver, over real connections.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use receiver::{Options, Receiver, Signature};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SOON: Duration = Duration::from_secs(5);
const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

async fn start() -> Receiver {
    Receiver::start(ANYWHERE, Some(SECRET)).await.unwrap()
}

/// Sends one request on a connection of its own and returns all that comes back.
async fn send(endpoint: &Receiver, line: &str, headers: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(endpoint.address()).await?;
    let length = body.len();
    let request =
        format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    Ok(response)
}

#[tokio::test]
async fn keeps_what_came_and_wakes_who_waits() {
    let endpoint = start().await;
    let waiting = endpoint.wait_for(|received| received.iter().any(|it| it.answered_success()), SOON);
    let headers = "X-Webhook-Job-Id: j1\r\nX-Webhook-Attempt: 3\r\n";
    let (arrived, response) = tokio::join!(waiting, send(&endpoint, "POST /hook?mine=1", headers, " {\"a\" : 1}\n"));

    assert!(response.unwrap().starts_with("HTTP/1.1 200"));
    let first = &arrived.unwrap()[0];
    assert_eq!((first.sequence, first.path_and_query.as_str()), (1, "/hook?mine=1"));
    assert_eq!((first.job_id.as_deref(), first.attempt), (Some("j1"), Some(3)));
    assert_eq!(&first.body[..], b" {\"a\" : 1}\n");
    assert_eq!(first.signature, Signature::Unsigned);

    let shown = send(&endpoint, "GET /received?job_id=j1", "", "").await.unwrap();
    assert!(shown.contains("\"attempt\":3") && shown.contains("\"status_answered\":200"), "{shown}");
    let none = send(&endpoint, "GET /received?job_id=j2", "", "").await.unwrap();
    assert!(none.ends_with("[]"), "{none}");
    let stats = send(&endpoint, "GET /stats", "", "").await.unwrap();
    assert!(stats.contains("\"received\":1") && stats.contains("\"answered\":{\"200\":1}"), "{stats}");
    let health = send(&endpoint, "GET /health", "", "").await.unwrap();
    assert!(health.ends_with("{\"status\":\"ok\"}"), "{health}");
}

#[tokio::test]
async fn fails_as_often_as_asked_for_each_webhook() {
    let endpoint = start().await;
    for (id, expected) in
        [("a", "503"), ("b", "503"), ("a", "503"), ("a", "200"), ("b", "503"), ("b", "200"), ("a", "200")]
    {
        let line = "POST /?fail_times=2&status=503&retry_after=7";
        let response = send(&endpoint, line, &format!("webhook-id: {id}\r\n"), "{}").await.unwrap();
        assert!(response.starts_with(&format!("HTTP/1.1 {expected}")), "{id}: {response}");
        assert_eq!(response.contains("retry-after: 7"), expected == "503", "{response}");
    }
}

#[tokio::test]
async fn resets_hangs_and_refuses() {
    let endpoint = start().await;
    let reset = send(&endpoint, "POST /?reset=1", "", "{}").await.unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);

    let sending = send(&endpoint, "POST /?hang=1", "", "{}");
    tokio::pin!(sending);
    let arrival = endpoint.wait_for(|received| received.len() == 2, SOON);
    tokio::select! {
        response = &mut sending => panic!("answered: {response:?}"),
        arrived = arrival => assert_eq!(arrived.unwrap()[1].status_answered(), None),
    }
    assert!(timeout(Duration::from_millis(50), sending).await.is_err(), "it must go on hanging");

    let refused = send(&endpoint, "POST /?status=99", "", "{}").await.unwrap();
    assert!(refused.starts_with("HTTP/1.1 400") && refused.contains("status must be"), "{refused}");
    assert_eq!(endpoint.counts().received, 2);
    assert!(endpoint.wait_for(|received| received.len() == 3, Duration::from_millis(10)).await.is_err());
}

#[tokio::test]
async fn forgets_the_oldest_and_counts_all() {
    let limits = receiver::Limits { requests: 2, ..receiver::Limits::default() };
    let endpoint = Receiver::start_with(ANYWHERE, Options { limits, ..Options::default() }).await.unwrap();
    for _ in 0..5 {
        send(&endpoint, "POST /", "", "{}").await.unwrap();
    }
    let kept: Vec<u64> = endpoint.received().iter().map(|it| it.sequence).collect();
    assert_eq!((kept, endpoint.counts().received), (vec![4, 5], 5));
}
