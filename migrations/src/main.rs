//! `outhook-migrate`: brings the database schema to the version of this build, then exits.

use clap::Parser;
use outbox::database::DatabaseConfig;
use outbox::env;
use outbox::telemetry::{self, LogConfig};

/// Brings the Outhook schema in Postgres to the version of this build, then exits.
///
/// Safe to run several times and from several places at once.
#[derive(Parser)]
#[command(name = "outhook-migrate", version)]
struct Config {
    #[command(flatten)]
    database: DatabaseConfig,
    #[command(flatten)]
    log: LogConfig,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let config: Config = env::read();
    telemetry::start_logging(&config.log);
    env::end::<Config>(run(&config).await)
}

async fn run(config: &Config) -> anyhow::Result<()> {
    let mut client = config.database.connect("outhook-migrate").await?;
    outhook_migrate::migrate(&mut client).await
}
