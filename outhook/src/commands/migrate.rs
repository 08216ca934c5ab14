//! `outhook migrate`: brings the database schema to the version of this build, then exits.

use clap::Parser;
use outbox::service::database::DatabaseConfig;
use outbox::service::env;
use outbox::service::telemetry::{self, LogConfig};

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
    /// Also creates the roles of the services that are missing, and gives each exactly the rights it needs
    /// (docs/security.md, "Least privilege"). Wants CREATEROLE the first time; to be repeated with every upgrade.
    #[arg(long)]
    roles: bool,
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run() {
    let config: Config = env::read();
    telemetry::start_logging(&config.log);
    env::end::<Config>(migrate(&config).await)
}

async fn migrate(config: &Config) -> anyhow::Result<()> {
    config.database.check_session("outhook-migrate").await?;
    let mut client = config.database.connect("outhook-migrate").await?;
    outhook_migrate::migrate(&mut client).await?;
    if config.roles {
        outhook_migrate::grant_rights(&mut client).await?;
    }
    Ok(())
}
