//! The api's configuration.

use std::time::Duration;

use clap::Parser;
use outbox::service::database::DatabaseConfig;
use outbox::service::shutdown::ShutdownConfig;
use outbox::service::telemetry::{LogConfig, MetricsConfig};
use outbox::signing::sealed::SecretsConfig;
use outbox::target::TargetPolicy;
use secrecy::SecretString;
use traces::TracesConfig;

use crate::signature::Secrets;

/// Accepts signed webhooks over HTTP and commits them to Postgres, each with its outbox row.
///
/// Any number may run side by side. Every option can be given as the environment variable in brackets.
#[derive(Parser, Clone, Debug)]
#[command(name = "outhook-api", version)]
pub struct Config {
    #[command(flatten)]
    pub(crate) database: DatabaseConfig,
    #[command(flatten)]
    pub(crate) server: ServerConfig,
    #[command(flatten)]
    pub(crate) accept: AcceptConfig,
    #[command(flatten)]
    pub(crate) targets: TargetPolicy,
    #[command(flatten)]
    pub(crate) secrets: SecretsConfig,
    #[command(flatten)]
    pub(crate) shutdown: ShutdownConfig,
    /// What is logged.
    #[command(flatten)]
    pub log: LogConfig,
    /// Where metrics are served besides `GET /metrics`.
    #[command(flatten)]
    pub metrics: MetricsConfig,
    /// Where traces go.
    #[command(flatten)]
    pub traces: TracesConfig,
}

/// How HTTP is served.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "HTTP")]
pub(crate) struct ServerConfig {
    /// Address to listen on.
    #[arg(long, env, default_value = "0.0.0.0")]
    pub app_host: String,
    /// Port to listen on.
    #[arg(long, env, default_value_t = 8080)]
    pub app_port: u16,
    /// Token that all routes but `POST /webhooks` and the probes ask for, as `Authorization: Bearer …`; at least 16 bytes.
    #[arg(long, env, hide_env_values = true, value_parser = api_token)]
    pub api_token: SecretString,
    /// Open connections. For one more, whoever has been idle the longest is closed.
    #[arg(long, env, default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_connections: u32,
    /// Seconds for a request's headers to arrive, and for an idle connection to stay open.
    #[arg(long, env, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300))]
    header_timeout_sec: u64,
    /// Seconds for a request's whole body to arrive.
    #[arg(long, env, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300))]
    body_timeout_sec: u64,
    /// Seconds to go on listening after SIGTERM, while `GET /ready` says 503, so that load balancers send nobody any more;
    /// then what is under way has `SHUTDOWN_TIMEOUT_SEC` to finish.
    #[arg(long, env, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    shutdown_delay_sec: u64,
    /// Longest request body, in bytes.
    #[arg(long, env, default_value_t = 1_048_576, value_parser = clap::value_parser!(u32).range(64..=16_777_216))]
    pub max_body_bytes: u32,
    /// Bytes of request bodies, of all together, that no signature has vouched for yet; at least `MAX_BODY_BYTES`. For
    /// more of them, the request that has stood still the longest is refused.
    #[arg(long, env, default_value_t = 67_108_864)]
    pub unverified_body_bytes: u64,
}

/// How webhooks are accepted.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Accepting")]
pub(crate) struct AcceptConfig {
    /// Secret that callers sign with; several, separated by commas, are all valid during a rotation. At
    /// least 16 bytes each. One that starts with `whsec_` is base64, as Standard Webhooks has it.
    #[arg(long, env, hide_env_values = true, value_parser = Secrets::parse)]
    pub hmac_secret: Secrets,
    /// Whether a signature must come with its time, as in Standard Webhooks: `true` turns `X-Signature` off, which
    /// can be replayed.
    #[arg(long, env, default_value_t = false, action = clap::ArgAction::Set)]
    pub require_timestamp: bool,
    /// Jobs in one commit.
    #[arg(long, env, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=5_000))]
    pub accept_batch_size: u16,
    /// Commits under way at once, each on a connection of its own.
    #[arg(long, env, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub accept_concurrency: u16,
}

fn api_token(text: &str) -> Result<SecretString, String> {
    if text.len() >= 16 { Ok(SecretString::from(text)) } else { Err("it must have at least 16 bytes".to_owned()) }
}

impl Config {
    /// What is wrong only together.
    ///
    /// # Errors
    /// A sentence that names the variables.
    pub fn check(&self) -> Result<(), &'static str> {
        let server = &self.server;
        if server.unverified_body_bytes < u64::from(server.max_body_bytes) {
            return Err("UNVERIFIED_BODY_BYTES cannot be used: it is less than MAX_BODY_BYTES");
        }
        Ok(())
    }
}

impl ServerConfig {
    pub(crate) const fn header_timeout(&self) -> Duration {
        Duration::from_secs(self.header_timeout_sec)
    }

    pub(crate) const fn shutdown_delay(&self) -> Duration {
        Duration::from_secs(self.shutdown_delay_sec)
    }

    pub(crate) const fn body_timeout(&self) -> Duration {
        Duration::from_secs(self.body_timeout_sec)
    }
}
