//! The relay's configuration.

use std::time::Duration;

use clap::Parser;
use outbox::broker::topology::{BrokerConfig, BrokerConfigError};
use outbox::service::database::DatabaseConfig;
use outbox::service::shutdown::ShutdownConfig;
use outbox::service::telemetry::{LogConfig, MetricsConfig};
use traces::TracesConfig;

use crate::members::MembersConfig;

/// Publishes what is due in the outbox to RabbitMQ, and records each publication after its confirm.
///
/// Any number may run side by side. Every option can be given as the environment variable in brackets.
#[derive(Parser, Clone, Debug)]
#[command(name = "outhook-relay", version)]
pub struct Config {
    #[command(flatten)]
    pub(crate) database: DatabaseConfig,
    #[command(flatten)]
    pub(crate) broker: BrokerConfig,
    #[command(flatten)]
    pub(crate) members: MembersConfig,
    #[command(flatten)]
    pub(crate) publish: PublishConfig,
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
    /// Certificates that belong to nothing, or are of no use.
    pub fn check(&self) -> Result<(), BrokerConfigError> {
        self.broker.check()
    }

    /// Lets this and its clones connect to the broker and to the collector as `other` does. What is connected stays.
    ///
    /// # Errors
    /// As of [`Self::check`], for the other.
    pub fn renew(&self, other: Self) -> Result<(), BrokerConfigError> {
        other.check()?;
        traces::renew(&other.traces);
        self.broker.renew(other.broker);
        Ok(())
    }
}

/// How the outbox is published.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Publishing")]
pub(crate) struct PublishConfig {
    /// Outbox rows claimed, published and marked in one transaction.
    #[arg(long, env, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=5_000))]
    pub relay_batch_size: u16,
    /// Batches under way at once, each with connections of its own; two at least if `RABBITMQ_URL` names several hosts.
    #[arg(long, env, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub relay_lanes: u16,
    /// Longest sleep between two looks at the outbox, in milliseconds, should notifications get lost.
    #[arg(long, env, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(10..=1_000))]
    relay_poll_interval_ms: u64,
    /// Tasks that may wait in the queue for a worker, at the most. Usually that is what workers take in 0.25 s, and
    /// the backlog stays in Postgres.
    #[arg(long, env, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub relay_queue_limit: u32,
    /// Seconds after which a published task whose job did not move is taken as lost and published again.
    #[arg(long, env, default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    republish_interval_sec: u64,
    /// Webhooks a second that are set free for a destination that recovers, at the most.
    #[arg(long, env, default_value_t = 4_000, value_parser = clap::value_parser!(i32).range(1..=100_000))]
    pub destination_drain_limit: i32,
    /// Days for which an idempotency key, or the id that a request was signed with, finds the job that it made. After that
    /// it makes another one.
    #[arg(long, env, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=3_650))]
    pub idempotency_days: u16,
}

impl PublishConfig {
    pub(crate) const fn poll_interval(&self) -> Duration {
        Duration::from_millis(self.relay_poll_interval_ms)
    }

    pub(crate) const fn republish_interval(&self) -> Duration {
        Duration::from_secs(self.republish_interval_sec)
    }
}
