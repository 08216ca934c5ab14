//! Whatever a receiver does, an attempt ends in time, says what happened, and leaves the worker as it was.

mod certificates;
mod http2;
mod recorded;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use harness::attempts::enqueue;
use harness::raw_server::Connection;
use harness::{PATIENCE, RawServer, report};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use self::recorded::{Case, SUCCESS, TIMEOUT, assert_recorded, deliver, failed, stack};

/// What a worker may grow by over receivers that would fill any memory, whatever its allocator keeps.
const GROWTH: u64 = 48 * 1_024 * 1_024;

async fn write_all(mut connection: Connection, bytes: &[u8]) -> io::Result<()> {
    connection.request().await?;
    connection.stream.write_all(bytes).await?;
    connection.stream.shutdown().await
}

/// Writes the beginning, then one byte at a time.
async fn drip(mut connection: Connection, beginning: &[u8]) -> io::Result<()> {
    connection.request().await?;
    connection.stream.write_all(beginning).await?;
    loop {
        connection.stream.write_all(b"x").await?;
        sleep(TIMEOUT / 20).await;
    }
}

/// Stays, and says nothing more.
async fn stay(connection: Connection) -> io::Result<()> {
    let _open = connection;
    std::future::pending().await
}

async fn redirect_to(url: &str, status: u16) -> RawServer {
    RawServer::answering(format!("HTTP/1.1 {status} Elsewhere\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_end_badly_or_not_at_all() {
    let stack = stack().await;
    let timed_out = failed("no answer within 4 s");
    let case = |name, server, expected| Case { name, server, expected };
    let cases = [
        case(
            "2xx, then a reset in the body",
            RawServer::start(|mut connection| async move {
                connection.request().await?;
                connection.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it").await?;
                connection.stream.set_zero_linger()
            })
            .await,
            SUCCESS,
        ),
        case(
            "2xx with a body that never comes",
            RawServer::start(|mut connection| async move {
                connection.request().await?;
                connection.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n").await?;
                stay(connection).await
            })
            .await,
            SUCCESS,
        ),
        case(
            "1xx, then silence",
            RawServer::start(|mut connection| async move {
                connection.request().await?;
                connection.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n").await?;
                stay(connection).await
            })
            .await,
            timed_out,
        ),
        case(
            "1xx without end",
            RawServer::start(|mut connection| async move {
                connection.request().await?;
                connection.write_for_ever(&b"HTTP/1.1 102 Processing\r\n\r\n".repeat(500)).await
            })
            .await,
            timed_out,
        ),
        case("dripping headers", RawServer::start(|it| drip(it, b"HTTP/1.1 200 OK\r\nX-A: ")).await, timed_out),
        case(
            "a dripping body",
            RawServer::start(|it| drip(it, b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")).await,
            SUCCESS,
        ),
        case("silence", RawServer::start(stay).await, timed_out),
        case("a close", RawServer::answering("").await, failed("the request failed: connection closed")),
    ];
    let recorded = deliver(&stack, &cases).await;
    assert!(recorded[5].response_excerpt.starts_with("xx"), "what had come of the body: {:?}", recorded[5]);
    stack.finish_unheard().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_lead_elsewhere_or_are_none() {
    let stack = stack().await;
    let elsewhere = RawServer::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let case = |name, server, expected| Case { name, server, expected };
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X-A: 1\r\n".repeat(10_000));
    let large = format!("HTTP/1.1 200 OK\r\nX-A: {}\r\n\r\n", "a".repeat(600 * 1_024));
    let lengths = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc";
    let mut cases = vec![
        case("999", RawServer::answering("HTTP/1.1 999 No\r\n\r\n").await, ("failed", Some(999), "HTTP 999")),
        case("101", RawServer::answering("HTTP/1.1 101 No\r\n\r\n").await, ("failed", Some(101), "HTTP 101")),
        case("1000", RawServer::answering("HTTP/1.1 1000 No\r\n\r\n").await, failed("the request failed: ")),
        case("000", RawServer::answering("HTTP/1.1 000 No\r\n\r\n").await, failed("the request failed: ")),
        case("a status that is no number", RawServer::answering("HTTP/1.1 OK\r\n\r\n").await, failed("invalid HTTP")),
        case("no HTTP", RawServer::answering("SSH-2.0-OpenSSH_9.6\r\n").await, failed("invalid HTTP version")),
        case("10,000 headers", RawServer::answering(many).await, failed("too large")),
        case("600 KB of a header", RawServer::answering(large).await, failed("too large")),
        case("two lengths", RawServer::answering(lengths).await, failed("content-length")),
    ];
    for (name, status) in [("301", 301), ("302", 302), ("303", 303), ("307", 307), ("308", 308)] {
        let server = redirect_to(&elsewhere.url(), status).await;
        cases.push(case(name, server, ("failed", Some(status.into()), "redirects are not followed")));
    }
    deliver(&stack, &cases).await;
    assert_eq!(elsewhere.connections(), 0, "a redirect was followed");
    stack.finish_unheard().await;
}

/// Compressed zeros, about 160 times as many: gzip (RFC 1952) around one deflate block with fixed codes
/// (RFC 1951, 3.2.6) of a zero and then, for ever, "the same again, 258 times", 11000101 00000.
fn gzip_bomb(bytes: usize) -> Vec<u8> {
    let mut bits = vec![true, true, false]; // The last block, fixed codes.
    let mut code = |text: &str| bits.extend(text.bytes().map(|bit| bit == b'1'));
    code("00110000");
    for _ in 0..bytes * 8 / 13 {
        code("1100010100000");
    }
    let packed = bits.chunks(8).map(|bits| (0..).zip(bits).map(|(at, &bit)| u8::from(bit) << at).sum());
    [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255].into_iter().chain(packed).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_without_end_bombs_and_bytes_that_are_no_text() {
    let stack = stack().await;
    let endless = |head: &'static [u8], piece: Vec<u8>| {
        let piece: Arc<[u8]> = piece.into();
        RawServer::start(move |mut connection| {
            let piece = Arc::clone(&piece);
            async move {
                connection.request().await?;
                connection.stream.write_all(head).await?;
                connection.write_for_ever(&piece).await
            }
        })
    };
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000)).into_bytes();
    let bomb = gzip_bomb(1_024 * 1_024);
    let bomb_head: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n";
    let text = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na\0b\xff\xfe";
    let case = |name, server, expected| Case { name, server, expected };
    let cases = [
        case("no end", endless(b"HTTP/1.1 200 OK\r\n\r\n", vec![b'x'; 65_536]).await, SUCCESS),
        case(
            "chunks without end",
            endless(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n", chunk).await,
            ("failed", Some(500), "HTTP 500"),
        ),
        case("a bomb", endless(bomb_head, bomb.clone()).await, SUCCESS),
        case("no text", RawServer::start(move |it| write_all(it, text)).await, SUCCESS),
    ];
    let before = stack.workers[0].peak_memory();
    let recorded = deliver(&stack, &cases).await;
    for _ in 0..5 {
        deliver(&stack, &cases).await;
    }
    let growth = stack.workers[0].peak_memory() - before;
    report(&format!("bodies without end: the worker's memory grew by {growth} of {GROWTH} bytes"));
    assert!(growth < GROWTH, "it grew by {growth} bytes");

    assert_eq!(recorded[0].response_excerpt, "x".repeat(1_024));
    assert_eq!(recorded[1].response_excerpt, "x".repeat(1_024));
    // As it came over the wire, and not the zeros that it stands for.
    let as_text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}");
    assert_eq!(recorded[2].response_excerpt, as_text(&bomb[..1_024]));
    assert_eq!(recorded[3].response_excerpt, "a\u{fffd}b\u{fffd}\u{fffd}");
    let requests: Vec<String> = cases.iter().flat_map(|case| case.server.requests()).collect();
    assert!(requests.iter().all(|request| !request.to_lowercase().contains("accept-encoding")), "{}", requests[0]);
    stack.finish_unheard().await;
}

/// A listener whose queue of connections is full: the kernel drops what else comes. Not every kernel does;
/// `None` there.
async fn full_listener() -> Option<(tokio::net::TcpListener, Vec<TcpStream>)> {
    let socket = TcpSocket::new_v4().expect("there are sockets");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("loopback has free ports");
    let listener = socket.listen(1).expect("it is bound");
    let address = listener.local_addr().expect("it is bound");
    let mut waiting = Vec::new();
    while waiting.len() < 16 {
        match timeout(Duration::from_secs(1), TcpStream::connect(address)).await {
            Ok(connected) => waiting.push(connected.expect("it is accepted or dropped")),
            Err(_) => return Some((listener, waiting)),
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receivers_that_are_not_there_or_do_not_read() {
    let stack = stack().await;
    let full = full_listener().await;
    let deaf = RawServer::start(stay).await;
    let nobody = RawServer::answering("").await.address();
    let mut jobs = Vec::new();
    if let Some((listener, _)) = &full {
        let url = format!("http://{}/hook", listener.local_addr().expect("it is bound"));
        let expected = failed("cannot connect: no connection in time");
        jobs.push(("a full queue, over TLS", url.replace("http:", "https:"), "{}".to_owned(), expected));
        jobs.push(("a full queue", url, "{}".to_owned(), expected));
    } else {
        report("skipped: this kernel drops no connections of a listener whose queue is full");
    }
    let name = "http://receiver.invalid/hook".to_owned();
    jobs.push(("no such name", name, "{}".to_owned(), failed("the host name does not resolve")));
    jobs.push(("nobody listens", format!("http://{nobody}/hook"), "{}".to_owned(), failed("connection refused")));
    // More than the buffers of both ends hold.
    jobs.push(("a peer that never reads", deaf.url(), "x".repeat(12_000_000), failed("no answer within 4 s")));
    let mut ids = Vec::new();
    for (_, url, payload, _) in &jobs {
        ids.push(enqueue(stack.pool(), url, payload).await.expect("it is a URL"));
    }
    stack.wait_until_drained(PATIENCE).await;
    for ((case, _, _, expected), job_id) in jobs.iter().zip(ids) {
        assert_recorded(&stack, case, job_id, *expected).await;
    }
    stack.finish_unheard().await;
}

/// One that has had enough when it has read the head of a large request: it answers, and closes with the rest unread, which
/// resets the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_before_the_request_is_out() {
    const WEBHOOKS: usize = 20;
    // Whoever answers and resets between a look for the answer and a write is not heard.
    const HEARD: usize = 17;
    let stack = stack().await;
    let hasty = RawServer::start(|mut connection| async move {
        let _ = connection.stream.read(&mut [0; 4_096]).await?;
        connection.stream.write_all(b"HTTP/1.1 429 No\r\nRetry-After: 77\r\nContent-Length: 0\r\n\r\n").await
    })
    .await;
    let payload = "x".repeat(10_000_000);
    for webhook in 0..WEBHOOKS {
        // Others of the same URL are paused by the answer.
        let url = format!("{}/{webhook}", hasty.url());
        enqueue(stack.pool(), &url, &payload).await.expect("it is a URL");
        stack.wait_until_drained(PATIENCE).await;
    }
    let heard = stack.count("SELECT count(*) FROM webhook_attempts WHERE status_code = 429").await;
    report(&format!("answers before the request is out: {heard} of {WEBHOOKS} were heard"));
    assert!(heard >= i64::try_from(HEARD).expect("a small number"), "only {heard} of {WEBHOOKS} answers were heard");
    let pauses = "SELECT count(*) FROM url_pauses WHERE until > now() + interval '30 s'";
    assert_eq!(stack.count(pauses).await, heard, "a Retry-After was not heard");
    stack.finish_unheard().await;
}
