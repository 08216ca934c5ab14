//! How a process is asked to end.

use std::process::exit;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::service::telemetry::flush_logs;

/// How long a process may take to end.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Shutdown")]
pub struct ShutdownConfig {
    /// Seconds that work under way may take to finish after SIGTERM or SIGINT.
    #[arg(long, env, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub shutdown_timeout_sec: u64,
}

impl ShutdownConfig {
    /// The limit as a duration.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        Duration::from_secs(self.shutdown_timeout_sec)
    }
}

/// Listens for SIGTERM and SIGINT: the first cancels the token, a second ends the process at once
/// with status 130.
///
/// # Errors
/// The signal handlers cannot be installed.
pub fn listen() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        either(&mut terminate, &mut interrupt).await;
        info!("stopping: finishing what is under way");
        stop.cancel();
        either(&mut terminate, &mut interrupt).await;
        flush_logs();
        exit(130);
    });
    Ok(token)
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
