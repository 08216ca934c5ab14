//! `outhook-receiver`: a webhook endpoint that prints and verifies what it gets.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::Context;
use clap::Parser;
use receiver::{Answer, Options, Received, Receiver};
use time::macros::format_description;
use tokio::signal::unix::{SignalKind, signal};

/// How much of a body a line shows, in characters.
const SHOWN_CHARACTERS: usize = 200;

/// Printed by `--help` after the options.
const BEHAVIOURS: &str = "The query string of the URL that is posted to says how it answers:
  ?status=503      this status instead of 200
  ?fail_times=2    500, or `status`, to the first two requests of each webhook
  ?delay_ms=100    after 100 milliseconds
  ?retry_after=3   with that Retry-After, unless it is a success
  ?location=URL    with that Location, unless it is a success
  ?hang=1          never
  ?reset=1         by resetting the connection

GET /received (?last=10, ?job_id=...) shows what came, GET /stats counts it, GET /health says ok.";

/// Prints and verifies the webhooks it gets.
#[derive(Parser)]
#[command(name = "outhook-receiver", version, after_long_help = BEHAVIOURS, after_help = BEHAVIOURS)]
struct Config {
    /// Address and port to listen on.
    #[arg(long, env, default_value = "127.0.0.1:9080")]
    receiver_addr: SocketAddr,

    /// Secret to verify signatures with, `whsec_` and base64; without it they are not checked.
    #[arg(long, env, hide_env_values = true)]
    webhook_signing_secret: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    // Before the socket opens, so that a signal during the start is not missed.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;

    let options = Options {
        // Compose files pass an empty value for a variable that is not set, and files end in a newline.
        secret: config.webhook_signing_secret.map(|it| it.trim_end().to_owned()).filter(|it| !it.is_empty()),
        observer: Some(Box::new(print_line)),
        ..Options::default()
    };
    let receiver = Receiver::start_with(config.receiver_addr, options).await?;
    say(&format!("receiver ready on http://{}", receiver.address()));

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    say(&format!("receiver stopped after {} deliveries", receiver.counts().received));
    Ok(())
}

fn print_line(request: &Received, answer: &Answer) {
    let time =
        request.at.format(format_description!("[hour]:[minute]:[second].[subsecond digits:3]Z")).unwrap_or_default();
    let job = request.job_id.as_deref().or(request.webhook_id.as_deref()).unwrap_or("(no job id)");
    let attempt = request.attempt.map_or_else(|| "?".to_owned(), |attempt| attempt.to_string());
    let bytes = request.body.len();
    let signature = &request.signature;
    let body = for_terminal(&request.body);
    let answer = match answer {
        Answer::Status(status) => status.to_string(),
        Answer::Hang => "no answer".to_owned(),
        Answer::Reset => "connection reset".to_owned(),
    };
    say(&format!(
        "{time}  job {}  attempt {attempt}  {bytes} bytes  {signature}  {body}  -> {answer}",
        for_terminal(job.as_bytes())
    ));
}

/// The start of a text with everything a terminal would act on replaced.
fn for_terminal(bytes: &[u8]) -> String {
    // A character has at most four bytes, so the rest need not be decoded.
    let start = &bytes[..bytes.len().min(SHOWN_CHARACTERS * 4)];
    let text = String::from_utf8_lossy(start);
    let mut shown: String = text
        .chars()
        .take(SHOWN_CHARACTERS)
        .map(|character| if is_unsafe_on_terminals(character) { '\u{fffd}' } else { character })
        .collect();
    if bytes.len() > start.len() || text.chars().nth(SHOWN_CHARACTERS).is_some() {
        shown.push('…');
    }
    shown
}

/// Control characters and the marks that reverse the order of the text after them.
fn is_unsafe_on_terminals(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}' | '\u{2066}'..='\u{2069}')
}

/// One line to standard output. A reader that went away must not end the receiver.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_bodies_safely() {
        assert_eq!(for_terminal(b"{\"a\":1}"), "{\"a\":1}");
        assert_eq!(for_terminal(b"\x1b[2Jx\r\n\xff"), "\u{fffd}[2Jx\u{fffd}\u{fffd}\u{fffd}");
        assert_eq!(for_terminal("\u{202e}x".as_bytes()), "\u{fffd}x");
        assert_eq!(for_terminal("é".repeat(201).as_bytes()).chars().count(), 201);
        assert_eq!(for_terminal("é".repeat(200).as_bytes()).chars().count(), 200);
        assert!(for_terminal(&[b'x'; 5000]).ends_with('…'));
    }
}
