//! A log that cannot be written, or whose reader has gone or does not read, ends and stops nobody: what is lost of it is
//! counted.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};

use harness::database::Database;
use harness::processes::{Program, status_into};
use harness::{PATIENCE, Servers, Stack, wait_until};
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::Signal;

const SERVICES: [Program; 3] = [Program::Api, Program::Relay, Program::Worker];
const NOBODY: (&str, &str) = ("DATABASE_URL", "postgres://outhook:secret@127.0.0.1:1/outhook");

/// Every write to it fails as on a full disk (full(4)).
fn full_disk() -> File {
    OpenOptions::new().write(true).open("/dev/full").expect("Linux has it")
}

/// Every write to it fails: nobody reads.
fn broken_pipe() -> PipeWriter {
    std::io::pipe().expect("a pipe can be made").1
}

/// Every write to it waits as long as the reader lives: it is full, and nobody reads.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe can be made");
    let size = fcntl_setpipe_size(&writer, 1).expect("it may be small");
    writer.write_all(&vec![b'x'; size]).expect("it has room for its size");
    (reader, writer)
}

/// A stack without processes.
async fn empty_stack() -> Stack {
    let mut stack = Stack::builder().relays(0).workers(0).start().await;
    stack.apis.remove(0).terminate().await;
    stack
}

/// Delivers webhooks, and insists that every service has lost lines by then and ends in order.
async fn assert_delivers_without_a_log(mut stack: Stack) {
    stack.wait_until_ready().await;
    for _ in 0..20 {
        stack.post("{}", "").await;
    }
    stack.wait_for_deliveries(20).await;
    for program in SERVICES {
        let service = &stack.processes(program)[0];
        // It says that it has got it.
        service.signal(Signal::HUP);
        wait_until("a line to be lost", PATIENCE, async || service.counter("outhook_log_lines_lost_total").await > 0.0)
            .await;
    }
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_nobody() {
    let mut stack = empty_stack().await;
    for program in SERVICES {
        stack.spawn_into(program, full_disk()).await;
    }
    assert_delivers_without_a_log(stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_stops_nobody() {
    let mut stack = empty_stack().await;
    for program in SERVICES {
        let (reader, writer) = std::io::pipe().expect("a pipe can be made");
        stack.spawn_into(program, writer).await;
        // As `2> >(head -n 1)` does.
        let first = tokio::task::spawn_blocking(move || BufReader::new(reader).lines().next());
        first.await.expect("reading does not panic").expect("it logs").expect("it is text");
    }
    assert_delivers_without_a_log(stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_stops_nobody() {
    let mut stack = empty_stack().await;
    let mut readers = Vec::new();
    for program in SERVICES {
        let (reader, writer) = full_pipe();
        stack.spawn_into(program, writer).await;
        readers.push(reader);
    }
    stack.wait_until_ready().await;
    for _ in 0..20 {
        stack.post("{}", "").await;
    }
    stack.wait_for_deliveries(20).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_word_that_nobody_hears_leaves_the_status_as_it_is() {
    for (program, environment, status) in [
        (Program::Api, &[][..], 2),
        (Program::Relay, &[NOBODY][..], 2),
        (Program::Worker, &[], 2),
        (Program::Migrate, &[NOBODY], 1),
        (Program::Check, &[NOBODY], 2),
    ] {
        let on_a_full_disk = status_into(program, environment, full_disk(), full_disk()).await;
        assert_eq!(on_a_full_disk.code(), Some(status), "{program:?} on a full disk: {on_a_full_disk}");
        let to_nobody = status_into(program, environment, broken_pipe(), broken_pipe()).await;
        assert_eq!(to_nobody.code(), Some(status), "{program:?} to nobody: {to_nobody}");
        let ((_reader, output), (_other_reader, errors)) = (full_pipe(), full_pipe());
        let to_the_deaf = status_into(program, environment, output, errors).await;
        assert_eq!(to_the_deaf.code(), Some(status), "{program:?} to somebody who does not read: {to_the_deaf}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verdict_that_nobody_reads_is_its_status() {
    let database = Database::create(Servers::shared().await).await;
    let environment = [("DATABASE_URL", database.url.as_str())];
    for program in [Program::Migrate, Program::Check] {
        let status = status_into(program, &environment, broken_pipe(), broken_pipe()).await;
        assert_eq!(status.code(), Some(0), "{program:?}: {status}");
    }
    database.drop().await;
}
