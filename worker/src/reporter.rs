//! Tells Postgres how destinations fare, for the relays and the other workers to see.

use outbox::destination::breaker::{CoolDown, Finding};
use outbox::destination::store::report;
use outbox::service::database::Pool;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::intake::Found;

/// Findings that may wait to be written; further ones are dropped, and come again with the next failure.
const WAITING: usize = 1_024;

pub(crate) struct Reporter {
    sender: mpsc::Sender<Found>,
}

impl Reporter {
    pub(crate) fn start(pool: Pool, cool_down: CoolDown) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Found>(WAITING);
        tokio::spawn(async move {
            while let Some((destination, finding, error)) = receiver.recv().await {
                if let Err(error) = report(&pool, &destination, finding, &error, cool_down).await {
                    warn!(%error, "cannot record how a destination fares");
                }
            }
        });
        Self { sender }
    }

    /// Hands a finding over, and does not wait.
    pub(crate) fn report(&self, found: Found) {
        let (_, finding, error) = &found;
        let kind = match finding {
            Finding::Down { .. } => "down",
            Finding::StillDown => "still_down",
            Finding::Slow { .. } => "slow",
            Finding::Recovered => "recovered",
        };
        metrics::counter!("outhook_worker_destination_reports_total", "kind" => kind).increment(1);
        if matches!(finding, Finding::Down { .. } | Finding::Slow { .. }) {
            // Not its name: it is its owner's business. outhook.sick_destinations shows it.
            info!(kind, error, "a destination is held back");
        }
        let _ = self.sender.try_send(found);
    }
}
