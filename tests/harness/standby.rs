//! A standby of Postgres, which may be promoted while the old primary becomes its standby.
//!
//! Both are [`Servers`] with ports of their own. Who is to find the primary wherever it is goes by a
//! [`crate::TcpProxy`] that is redirected; a `database_url` that leads through that makes the tests' own
//! connections go the same way.

use crate::Servers;
use crate::database::{execute, query};
use crate::servers::Server;
use crate::wait::{PATIENCE, wait_until};

impl Servers {
    /// A standby of this Postgres, which streams what that writes.
    pub async fn standby(&self) -> Self {
        let primary = self.postgres_address().to_string();
        let start = move || Self::start(&ONLY_POSTGRES, vec![(PRIMARY, primary)]);
        tokio::task::spawn_blocking(start).await.expect("the standby starts")
    }

    /// Makes a primary of this standby, which returns when it can be written to. Who else was primary stays one
    /// until somebody stops it.
    pub async fn promote(&self) {
        execute(&self.own_url(), "SELECT pg_promote()").await;
        wait_until("the standby to be a primary", PATIENCE, async || !self.is_standby().await).await;
    }

    /// Stops this Postgres, which loses what only it has, and starts it at its old port as a standby of the other one.
    pub async fn become_standby_of(&self, primary: &Self) {
        self.wipe(Server::Postgres).await;
        let primary = primary.postgres_address().to_string();
        self.script_with(&[&["start"], &ONLY_POSTGRES[..]].concat(), &[(PRIMARY, &primary)]).await;
    }

    /// Whether it only repeats what a primary writes.
    pub async fn is_standby(&self) -> bool {
        query(&self.own_url(), "SELECT pg_is_in_recovery()").await
    }

    /// Waits until this standby has all that the primary has written so far.
    pub async fn wait_for_all_of(&self, primary: &Self) {
        let written: String = query(&primary.own_url(), "SELECT pg_current_wal_flush_lsn()::text").await;
        let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        wait_until("the standby to have it all", PATIENCE, async || query(&self.own_url(), &reached).await).await;
    }

    /// Its URL whatever way `database_url` goes.
    fn own_url(&self) -> String {
        format!("postgres://outhook@{}/outhook", self.postgres_address())
    }
}

const ONLY_POSTGRES: [&str; 2] = ["--only", Server::Postgres.name()];

/// What tells `scripts/servers` to copy a primary instead of making a new database cluster.
const PRIMARY: &str = "POSTGRES_PRIMARY";
