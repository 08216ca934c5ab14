//! `outhook receiver`: a webhook endpoint that prints and verifies what it gets.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::Context;
use clap::Parser;
use outbox::service::env;
use receiver::{Options, Receiver, line};
use tokio::signal::unix::{SignalKind, signal};

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
pub(crate) async fn run() -> anyhow::Result<()> {
    let config = Config::parse_from(env::arguments("outhook-receiver"));
    // Before the socket opens, so that a signal during the start is not missed.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;

    let options = Options {
        // Compose files pass an empty value for a variable that is not set, and files end in a newline.
        secret: config.webhook_signing_secret.map(|it| it.trim_end().to_owned()).filter(|it| !it.is_empty()),
        observer: Some(Box::new(|request, answer| say(&line(request, answer)))),
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

/// One line to standard output. A reader that went away must not end the receiver.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
