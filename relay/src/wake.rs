//! What ends a lane's sleep.
//!
//! Notifications are hints: one may be lost with its connection, so a lane also sleeps no longer than
//! the poll interval, and no longer than until the next row becomes due.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outbox::service::backoff::Backoff;
use outbox::service::database::{DatabaseConfig, DatabaseError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How often the listening connection is asked whether it still lives.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Who does not hear himself for so long is deaf.
const ECHO_TIMEOUT: Duration = Duration::from_secs(10);

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
pub(crate) struct Waker {
    lanes: watch::Sender<()>,
    /// Since when a notification of this process's own is on its way.
    called: Arc<Mutex<Option<Instant>>>,
}

impl Waker {
    fn new() -> (Self, Notified) {
        let (lanes, notified) = watch::channel(());
        (Self { lanes, called: Arc::default() }, Notified(notified))
    }

    /// Something is due.
    pub(crate) fn wake(&self) {
        self.lanes.send_replace(());
    }

    /// A notification is about to be sent, on another connection than the one that listens: the only proof that the
    /// latter hears anything. With a pooler between, it may live and have lost its session to somebody else.
    pub(crate) fn calls(&self, now: Instant) {
        self.called().get_or_insert(now);
    }

    /// Something was heard, or nothing can be.
    pub(crate) fn heard(&self) {
        *self.called() = None;
    }

    fn is_deaf(&self, now: Instant) -> bool {
        self.called().is_some_and(|since| now - since >= ECHO_TIMEOUT)
    }

    fn called(&self) -> MutexGuard<'_, Option<Instant>> {
        self.called.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the task that listens for `outhook.wake()`, and reconnects until `stop`.
pub(crate) fn listen(database: DatabaseConfig, stop: CancellationToken) -> (Notified, Waker) {
    let (waker, notified) = Waker::new();
    let listener = waker.clone();
    tokio::spawn(async move {
        let mut backoff = Backoff::reconnect();
        loop {
            let lost = tokio::select! {
                () = stop.cancelled() => return,
                lost = listen_until_lost(&database, &listener, &mut backoff) => lost,
            };
            metrics::counter!("outhook_relay_listen_failures_total").increment(1);
            warn!(error = %lost, "not listening for notifications; polling meanwhile");
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(backoff.next_wait()) => {}
            }
        }
    });
    (notified, waker)
}

async fn listen_until_lost(database: &DatabaseConfig, waker: &Waker, backoff: &mut Backoff) -> DatabaseError {
    let listening = async {
        let listener = waker.clone();
        let hear = move || {
            listener.heard();
            listener.wake();
        };
        let client = database.connect_listening("outhook-relay listen", hear).await?;
        timeout(CHECK_INTERVAL, client.batch_execute("LISTEN outhook_outbox"))
            .await
            .map_err(|_| DatabaseError::Timeout)??;
        // Whatever was notified while nobody listened.
        waker.heard();
        waker.wake();
        debug!("listening for notifications");
        let mut was_deaf = false;
        loop {
            sleep(CHECK_INTERVAL).await;
            timeout(CHECK_INTERVAL, client.batch_execute("")).await.map_err(|_| DatabaseError::Timeout)??;
            // Twice: a process that stood still looks before it has read what came meanwhile.
            let is_deaf = waker.is_deaf(Instant::now());
            if is_deaf && was_deaf {
                return Err(DatabaseError::Deaf);
            }
            was_deaf = is_deaf;
            backoff.reset();
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
        let (waker, mut notified) = Waker::new();
        waker.wake();
        notified.forget();
        // Here the outbox is read, and comes up empty; a row is committed and notified just after.
        waker.wake();
        let stop = CancellationToken::new();
        let sleep = notified.sleep(None, LONG, &stop);
        assert_eq!(timeout(Duration::from_secs(5), sleep).await, Ok(Wake::Notified));
    }

    #[tokio::test]
    async fn the_nearer_of_due_and_poll_ends_the_sleep() {
        let (_waker, mut notified) = Waker::new();
        let stop = CancellationToken::new();
        let short = Duration::from_millis(1);
        assert_eq!(notified.sleep(Some(short), LONG, &stop).await, Wake::Due);
        assert_eq!(notified.sleep(Some(LONG), short, &stop).await, Wake::Poll);
        stop.cancel();
        assert_eq!(notified.sleep(None, LONG, &stop).await, Wake::Shutdown);
    }

    #[test]
    fn who_does_not_hear_himself_is_deaf() {
        let (waker, _notified) = Waker::new();
        let now = Instant::now();
        waker.calls(now);
        // Once more, but it is the first that has not been heard.
        waker.calls(now + ECHO_TIMEOUT / 2);
        assert!(!waker.is_deaf(now + ECHO_TIMEOUT / 2));
        assert!(waker.is_deaf(now + ECHO_TIMEOUT));
        waker.heard();
        assert!(!waker.is_deaf(now + ECHO_TIMEOUT), "nobody calls");
    }
}
