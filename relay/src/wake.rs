//! What ends a lane's sleep.
//!
//! Notifications are hints: one may be lost with its connection, so a lane also sleeps no longer than
//! the poll interval, and no longer than until the next row becomes due.

use std::time::Duration;

use outbox::backoff::Backoff;
use outbox::database::{DatabaseConfig, DatabaseError};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How often the listening connection is asked whether it still lives.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Why a lane woke up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// A NOTIFY came.
    Notified,
    /// The next row is due.
    Due,
    /// Nothing happened for the poll interval.
    Poll,
    /// The process is asked to stop.
    Shutdown,
}

/// One lane's ear for notifications.
#[derive(Clone, Debug)]
pub(crate) struct Notified(watch::Receiver<()>);

impl Notified {
    /// Forgets what was heard. Called before the outbox is read: whatever comes after that read, even
    /// before the sleep begins, ends the sleep.
    pub(crate) fn forget(&mut self) {
        self.0.mark_unchanged();
    }

    /// Sleeps until there may be something to do.
    pub(crate) async fn sleep(&mut self, next_due: Option<Duration>, poll: Duration, stop: &CancellationToken) -> Wake {
        let (wait, reason) = match next_due {
            Some(next_due) if next_due < poll => (next_due, Wake::Due),
            _ => (poll, Wake::Poll),
        };
        tokio::select! {
            () = stop.cancelled() => Wake::Shutdown,
            Ok(()) = self.0.changed() => Wake::Notified,
            () = sleep(wait) => reason,
        }
    }
}

/// Wakes the lanes of this process.
#[derive(Clone, Debug)]
pub(crate) struct Waker(watch::Sender<()>);

impl Waker {
    /// Something is due.
    pub(crate) fn wake(&self) {
        self.0.send_replace(());
    }
}

/// Starts the task that listens for `outhook.wake()`, and reconnects until `stop`.
pub(crate) fn listen(database: DatabaseConfig, stop: CancellationToken) -> (Notified, Waker) {
    let (sender, receiver) = watch::channel(());
    let waker = Waker(sender.clone());
    tokio::spawn(async move {
        let mut backoff = Backoff::reconnect();
        loop {
            let lost = tokio::select! {
                () = stop.cancelled() => return,
                lost = listen_until_lost(&database, &sender, &mut backoff) => lost,
            };
            metrics::counter!("outhook_relay_listen_failures_total").increment(1);
            warn!(error = %lost, "not listening for notifications; polling meanwhile");
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(backoff.next_wait()) => {}
            }
        }
    });
    (Notified(receiver), waker)
}

async fn listen_until_lost(
    database: &DatabaseConfig,
    sender: &watch::Sender<()>,
    backoff: &mut Backoff,
) -> DatabaseError {
    let listening = async {
        let notified = sender.clone();
        let client = database.connect_listening("outhook-relay listen", move || notified.send_replace(())).await?;
        timeout(CHECK_INTERVAL, client.batch_execute("LISTEN outhook_outbox"))
            .await
            .map_err(|_| DatabaseError::Timeout)??;
        // Whatever was notified while nobody listened.
        sender.send_replace(());
        backoff.reset();
        debug!("listening for notifications");
        loop {
            sleep(CHECK_INTERVAL).await;
            let channels = client.query_one("SELECT count(*) FROM pg_listening_channels()", &[]);
            let channels = timeout(CHECK_INTERVAL, channels).await.map_err(|_| DatabaseError::Timeout)??;
            if channels.get::<_, i64>(0) == 0 {
                // Somebody else has the session that listened.
                return Err(DatabaseError::NoSession);
            }
        }
    };
    let Err::<std::convert::Infallible, _>(error) = listening.await;
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn a_notification_between_reading_and_sleeping_ends_the_sleep() {
        let (sender, receiver) = watch::channel(());
        let mut notified = Notified(receiver);
        sender.send_replace(());
        notified.forget();
        // Here the outbox is read, and comes up empty; a row is committed and notified just after.
        sender.send_replace(());
        let stop = CancellationToken::new();
        let sleep = notified.sleep(None, LONG, &stop);
        assert_eq!(timeout(Duration::from_secs(5), sleep).await, Ok(Wake::Notified));
    }

    #[tokio::test]
    async fn the_nearer_of_due_and_poll_ends_the_sleep() {
        let (_sender, receiver) = watch::channel(());
        let mut notified = Notified(receiver);
        let stop = CancellationToken::new();
        let short = Duration::from_millis(1);
        assert_eq!(notified.sleep(Some(short), LONG, &stop).await, Wake::Due);
        assert_eq!(notified.sleep(Some(LONG), short, &stop).await, Wake::Poll);
        stop.cancel();
        assert_eq!(notified.sleep(None, LONG, &stop).await, Wake::Shutdown);
    }
}
