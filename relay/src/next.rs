//! What a lane does after a batch.

use std::time::Duration;

/// What to do after a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// There may be more.
    GoOn,
    /// Nothing is due; the next row is, in this time.
    Sleep(Option<Duration>),
    /// The queue is long enough.
    QueueFull,
    /// The broker refused all of it.
    Refused,
}
