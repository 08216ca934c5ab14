//! The same over HTTP/2, where a receiver has more ways.

use std::time::Duration;

use harness::attempts::enqueue;
use harness::certificates::Authority;
use harness::http2_server::{
    CONTINUATION, END_HEADERS, HEADERS, Http2Server, INITIAL_WINDOW_SIZE, PING, RST_STREAM, Reaction, SETTINGS, frame,
};
use harness::{PATIENCE, Stack, report, wait_until};
use tempfile::NamedTempFile;

use super::recorded::{TIMEOUT, assert_recorded, failed};

/// What a worker may grow by. Of interim answers, which are never shown to anybody, the library keeps what it reads in one
/// go: some 34 MB.
const GROWTH: u64 = 96 * 1_024 * 1_024;

/// `:status: 200`, and a header of 4,000 bytes that HPACK keeps (RFC 7541, sections 6.1 and 6.2.1).
fn head_to_keep() -> Vec<u8> {
    // A name of one byte, and the length of the value as 127 + 33 + 30 * 128.
    let literal = [&[0x88, 0x40, 1, b'a', 0x7f, 0xa1, 0x1e][..], &[b'a'; 4_000]].concat();
    frame(HEADERS, 0, 1, &literal)
}

/// 16,000 references to it, of one byte each: 62, the first that is kept, with the bit of an index.
fn references() -> Vec<u8> {
    frame(CONTINUATION, 0, 1, &[0xbe; 16_000])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_http2_lets_a_receiver_do() {
    let authority = Authority::new();
    let roots = NamedTempFile::new().expect("there is room for temporary files");
    std::fs::write(roots.path(), authority.pem()).expect("there is room for it");
    let stack = Stack::builder()
        .env("HTTP_CLIENT_TIMEOUT_SEC", &TIMEOUT.as_secs().to_string())
        .worker_env("EGRESS_CA_FILE", roots.path().to_str().expect("the path is text"))
        .start()
        .await;
    let identity = authority.issue("127.0.0.1");
    let no_settings: &[(u16, u32)] = &[];
    let flood = |beginning: Vec<u8>, again: Vec<u8>| (no_settings, Reaction::Flood(beginning, again));
    let cases = [
        (
            "a header block without end",
            flood(frame(HEADERS, 0, 1, &[0x88]), frame(CONTINUATION, 0, 1, &[]).repeat(1_000)),
        ),
        ("a long header block", flood(frame(HEADERS, 0, 1, &[0x88]), frame(CONTINUATION, 0, 1, &[0x88; 16_000]))),
        ("a bomb of headers", flood(head_to_keep(), references())),
        (
            "answers without end",
            flood(vec![], frame(HEADERS, END_HEADERS, 1, &[0x08, 3, b'1', b'0', b'3']).repeat(1_000)),
        ),
        ("resets without end", flood(vec![], frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()).repeat(1_000))),
        ("settings without end", flood(vec![], frame(SETTINGS, 0, 0, &[]).repeat(1_000))),
        ("PINGs without end", flood(vec![], frame(PING, 0, 0, &[0; 8]).repeat(1_000))),
        ("unknown frames without end", flood(vec![], frame(0xee, 0, 0, &[0; 16_000]))),
        ("a frame too long", flood(frame(HEADERS, END_HEADERS, 1, &vec![0x88; 20_000]), vec![0; 65_536])),
        ("no room for the body", (&[(INITIAL_WINDOW_SIZE, 0)], Reaction::AnswerAfter(PATIENCE))),
    ];
    let open_before = stack.workers[0].open_files();
    let before = stack.workers[0].peak_memory();
    let mut servers = Vec::new();
    for (name, (settings, reaction)) in cases {
        let server = Http2Server::start_with(&identity, settings, move |_, _| reaction.clone()).await;
        servers.push((name, server));
    }
    for round in 0..3 {
        let mut jobs = Vec::new();
        for (_, server) in &servers {
            jobs.push(enqueue(stack.pool(), &server.url(), "{}").await.expect("it is a URL"));
        }
        stack.wait_until_drained(PATIENCE).await;
        for ((name, _), job_id) in servers.iter().zip(jobs) {
            let attempt = assert_recorded(&stack, name, job_id, failed("")).await;
            if round == 0 {
                report(&format!("{name}: {}", attempt.error));
            }
        }
    }
    let growth = stack.workers[0].peak_memory() - before;
    report(&format!("hostile HTTP/2: the worker's memory grew by {growth} of {GROWTH} bytes"));
    assert!(growth < GROWTH, "it grew by {growth} bytes");
    wait_until("the worker to close their connections", Duration::from_secs(20), async || {
        stack.workers[0].open_files() <= open_before + 4
    })
    .await;
    stack.finish_unheard().await;
}
