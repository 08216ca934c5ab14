//! Tells the relays that something is due. A hint: they poll as well.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::Notify;
use tracing::debug;

use crate::database::on_connection;

/// Between two notifications; the relay takes no more turns than that anyway.
const SPACING: Duration = Duration::from_millis(3);

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
    pub fn start(pool: PgPool) -> Self {
        let wanted = Arc::new(Notify::new());
        let notifier = Self { wanted: Arc::clone(&wanted) };
        tokio::spawn(async move {
            loop {
                wanted.notified().await;
                let statement = sqlx::query("SELECT outhook.wake()");
                let sent = on_connection(&pool, async |connection| statement.execute(connection).await).await;
                if let Err(error) = sent {
                    debug!(%error, "the relays were not notified; their poll will do");
                }
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
