//! Tells Postgres how destinations fare, for the relays and the other workers to see.

use std::sync::Arc;

use outbox::destination::{self, CoolDown};
use sqlx::PgPool;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::intake::Report;

/// Reports that may wait to be written; further ones are dropped, and come again with the next failure.
const WAITING: usize = 1_024;

pub(crate) struct Reporter {
    sender: mpsc::Sender<(Arc<str>, Report)>,
}

impl Reporter {
    pub(crate) fn start(pool: PgPool, cool_down: CoolDown) -> Self {
        let (sender, mut receiver) = mpsc::channel::<(Arc<str>, Report)>(WAITING);
        tokio::spawn(async move {
            while let Some((destination, report)) = receiver.recv().await {
                if let Err(error) = write(&pool, &destination, &report, cool_down).await {
                    warn!(%error, "cannot record how a destination fares");
                }
            }
        });
        Self { sender }
    }

    /// Hands a report over, and does not wait.
    pub(crate) fn report(&self, destination: Arc<str>, report: Report) {
        let kind = match &report {
            Report::Down { .. } => "down",
            Report::StillDown { .. } => "still_down",
            Report::Slow { .. } => "slow",
            Report::Recovered => "recovered",
        };
        metrics::counter!("outhook_worker_destination_reports_total", "kind" => kind).increment(1);
        if let Report::Down { error, .. } | Report::Slow { error, .. } = &report {
            // Not its name: it is its owner's business. outhook.sick_destinations shows it.
            info!(kind, error, "a destination is held back");
        }
        let _ = self.sender.try_send((destination, report));
    }
}

async fn write(pool: &PgPool, destination: &str, report: &Report, cool_down: CoolDown) -> Result<(), sqlx::Error> {
    match report {
        Report::Down { error, released } => {
            // It may have been the probe.
            if *released {
                destination::reopen(pool, destination, error, cool_down).await?;
            }
            destination::open(pool, destination, error, cool_down).await
        }
        Report::StillDown { error } => destination::reopen(pool, destination, error, cool_down).await,
        Report::Slow { pause, limit, error } => destination::slow_down(pool, destination, *pause, *limit, error).await,
        Report::Recovered => destination::recover(pool, destination).await,
    }
}
