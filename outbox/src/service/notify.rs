//! Tells the relays that something is due. A hint: they poll as well.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{debug, info, warn};

use crate::service::database::{Pool, on_connection};
use crate::service::telemetry::Metric;

/// Between two notifications; the relay takes no more turns than that anyway.
const SPACING: Duration = Duration::from_millis(3);

/// How often the relays could not be told.
pub const FAILURES: Metric = Metric::counter(
    "outhook_notify_failures_total",
    "Notifications that could not be sent to the relays, which find what is due at their next poll.",
);

/// Sends `NOTIFY`, at most one at a time: any number of calls while one is under way, or just was, become one more.
///
/// Outside the transactions that make rows due: inside them it would take a cluster-wide lock until the
/// commit (2,929 commits/s at 64 clients became 526).
#[derive(Clone, Debug)]
pub struct Notifier {
    wanted: Arc<Notify>,
}

impl Notifier {
    /// Starts the task that sends over `pool`. It ends with the runtime.
    #[must_use]
    pub fn start(pool: Pool) -> Self {
        let wanted = Arc::new(Notify::new());
        let notifier = Self { wanted: Arc::clone(&wanted) };
        tokio::spawn(async move {
            let mut refused = false;
            loop {
                wanted.notified().await;
                let statement = sqlx::query("SELECT outhook.wake()");
                let sent = on_connection(&pool, async |connection| statement.execute(connection).await).await;
                if sent.is_err() {
                    metrics::counter!("outhook_notify_failures_total").increment(1);
                }
                refused = say(sent.map(drop), refused);
                tokio::time::sleep(SPACING).await;
            }
        });
        notifier
    }

    /// Asks for a notification; returns at once.
    pub fn wake_relays(&self) {
        self.wanted.notify_one();
    }
}

/// Says once that Postgres refuses to notify, as with a full queue, and once that it does so again. Returns whether it
/// refuses. A connection that is lost is the others' to say.
fn say(sent: Result<(), sqlx::Error>, refused: bool) -> bool {
    match sent {
        Ok(()) => {
            if refused {
                info!("the relays are notified again");
            }
            false
        }
        Err(error @ sqlx::Error::Database(_)) if !refused => {
            warn!(%error, "cannot notify the relays; they find what is due when they look next");
            true
        }
        Err(error) => {
            debug!(%error, "the relays were not notified; their poll will do");
            refused
        }
    }
}
