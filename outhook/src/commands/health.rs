//! `outhook health`: a health check for images that have nothing else to ask with.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use outbox::service::env;

/// Within this the answer must be there: less than those who run health checks wait, so that this still says what was wrong.
const PATIENCE: Duration = Duration::from_secs(4);

/// Bytes of an answer up to its status.
const STATUS_LINE: usize = "HTTP/1.1 200".len();

/// Asks a process on this machine whether it is well.
///
/// Exits with 0 if it answers 200 within four seconds, else with 1.
#[derive(Parser)]
#[command(name = "outhook-health", version)]
struct Config {
    /// The port of 127.0.0.1 to ask at.
    port: u16,
    /// The path to ask for, such as `/ready`.
    path: String,
}

pub(crate) fn run() {
    let config: Config = env::read();
    env::end::<Config>(check(&config));
}

fn check(config: &Config) -> anyhow::Result<()> {
    let path = config.path.trim_start_matches('/');
    let url = format!("http://127.0.0.1:{}/{path}", config.port);
    let line = ask(config.port, path).with_context(|| format!("{url} does not answer"))?;
    let (_, status) = line.split_once(' ').with_context(|| format!("{url} does not answer in HTTP"))?;
    ensure!(status == "200", "{url} answers {status}");
    Ok(())
}

/// The first line of the answer, up to the status.
fn ask(port: u16, path: &str) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET /{path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut line = [0; STATUS_LINE];
    let mut length = 0;
    while length < line.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut line[length..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(more) => length += more,
            // What Linux says when the time is over.
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}
