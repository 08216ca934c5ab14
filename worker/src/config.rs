//! The worker's configuration.

use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Parser};
use outbox::broker::topology::BrokerConfig;
use outbox::destination::breaker::CoolDown;
use outbox::job::claim::Lease;
use outbox::retry::RetryPolicy;
use outbox::service::database::DatabaseConfig;
use outbox::service::shutdown::ShutdownConfig;
use outbox::service::telemetry::{LogConfig, MetricsConfig};
use outbox::signing::sealed::SecretsConfig;
use outbox::target::TargetPolicy;
use traces::TracesConfig;

use crate::egress::EgressConfig;
use crate::intake::Bounds;
use crate::outcome::ResponsePolicy;
use crate::signature::SigningKeys;

/// Claims jobs as their tasks come, posts them to their URLs and records what happened.
///
/// Any number may run side by side. Every option can be given as the environment variable in brackets.
#[derive(Parser, Clone, Debug)]
#[command(name = "outhook-worker", version)]
pub struct Config {
    #[command(flatten)]
    pub(crate) database: DatabaseConfig,
    #[command(flatten)]
    pub(crate) broker: BrokerConfig,
    #[command(flatten)]
    pub(crate) delivery: DeliveryConfig,
    #[command(flatten)]
    pub(crate) retry: RetryPolicy,
    #[command(flatten)]
    pub(crate) responses: ResponsePolicy,
    #[command(flatten)]
    pub(crate) fairness: FairnessConfig,
    #[command(flatten)]
    pub(crate) targets: TargetPolicy,
    #[command(flatten)]
    pub(crate) egress: EgressConfig,
    #[command(flatten)]
    pub(crate) secrets: SecretsConfig,
    #[command(flatten)]
    pub(crate) shutdown: ShutdownConfig,
    /// What is logged.
    #[command(flatten)]
    pub log: LogConfig,
    /// Where metrics are served.
    #[command(flatten)]
    pub metrics: MetricsConfig,
    /// Where traces go.
    #[command(flatten)]
    pub traces: TracesConfig,
}

impl Config {
    /// Checks what can only be said of several options together.
    ///
    /// # Errors
    /// A client certificate and its key do not belong together, or certificates are of no use.
    pub fn check(&self) -> anyhow::Result<()> {
        self.broker.check()?;
        Ok(self.egress.check()?)
    }
}

/// How webhooks are delivered.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Delivery")]
pub(crate) struct DeliveryConfig {
    /// Requests under way at once. More of them also means larger batches to claim and to record.
    #[arg(long, env, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub worker_concurrency: u16,
    /// Bytes of large payloads (64 KiB or more) under way at once; one alone may have more.
    #[arg(long, env, default_value_t = 268_435_456, value_parser = clap::value_parser!(u64).range(65_536..))]
    pub worker_payload_bytes: u64,
    /// Seconds an attempt may take in all, from resolving the name to the end of the answer.
    #[arg(long, env, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300))]
    http_client_timeout_sec: u64,
    /// Whether receivers that can are spoken to by HTTP/2: on or off.
    #[arg(long, env, default_value = "on", action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub http2: bool,
    /// Key that deliveries are signed with (`whsec_` and the base64 of 24 to 64 bytes), as of Standard
    /// Webhooks; several, separated by commas, sign side by side during a rotation. Keys of a destination or
    /// of a job replace it. Without any of these, deliveries are unsigned.
    #[arg(long, env, hide_env_values = true, value_parser = SigningKeys::parse)]
    pub webhook_signing_secret: Option<SigningKeys>,
    /// Bytes of a response body that are kept with its attempt.
    #[arg(long, env, default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub response_excerpt_bytes: u32,
}

/// How destinations are kept from each other's way.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Fairness")]
pub(crate) struct FairnessConfig {
    /// Requests under way at once for one destination, at the most. It never gets more than there are slots left
    /// for others either, so that one alone has half of them.
    #[arg(long, env, default_value_t = 10_000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    destination_concurrency: u16,
    /// Failures in a row of one destination, as one worker sees them, that open its circuit breaker: no answer,
    /// or a status of 500 or above.
    #[arg(long, env, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    breaker_failures: u32,
    /// Seconds until an open breaker lets one webhook through to see; doubled each time that fails.
    #[arg(long, env, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    breaker_cooldown_sec: u64,
    /// Longest such time, in seconds.
    #[arg(long, env, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    breaker_cooldown_max_sec: u64,
}

impl FairnessConfig {
    pub(crate) fn cool_down(&self) -> CoolDown {
        CoolDown {
            base: Duration::from_secs(self.breaker_cooldown_sec),
            max: Duration::from_secs(self.breaker_cooldown_max_sec.max(self.breaker_cooldown_sec)),
        }
    }
}

impl Config {
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            slots: self.delivery.worker_concurrency.into(),
            per_destination: self.fairness.destination_concurrency.into(),
            breaker_failures: self.fairness.breaker_failures,
            payload_bytes: self.delivery.worker_payload_bytes,
        }
    }
}

/// What a lease is longer than an attempt: time to wait for the settlement's turn and its commit.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

impl DeliveryConfig {
    pub(crate) const fn timeout(&self) -> Duration {
        Duration::from_secs(self.http_client_timeout_sec)
    }

    /// For how long a claim owns its job.
    pub(crate) const fn lease(&self) -> Lease {
        Lease { timeout: self.timeout(), margin: LEASE_MARGIN }
    }

    /// Tasks that RabbitMQ hands out ahead: one under way and one at hand for each slot.
    pub(crate) const fn prefetch(&self) -> u16 {
        self.worker_concurrency.saturating_mul(2)
    }
}
