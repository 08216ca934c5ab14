//! One connection: how far the request is that it brings, and whether its answer is out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::request::Parts;
use tokio_util::sync::CancellationToken;

use super::partial_body::{MadeWay, PartialBody};
use super::registry::Connections;
use super::table::Phase;

/// It is no longer counted when this is dropped.
pub(crate) struct Connection {
    id: u64,
    all: Arc<Connections>,
    cut: CancellationToken,
    /// A request has come, and its answer is not out.
    has_request: AtomicBool,
    /// The answer has been handed over, and may not be out yet.
    answered: AtomicBool,
    /// The request has a body that was not read to its end.
    body_is_unread: AtomicBool,
}

impl Connection {
    /// One more of them.
    pub(crate) fn open(all: &Arc<Connections>) -> Arc<Self> {
        let cut = CancellationToken::new();
        Arc::new(Self {
            id: all.admit(cut.clone()),
            all: Arc::clone(all),
            cut,
            has_request: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            body_is_unread: AtomicBool::new(false),
        })
    }

    /// The one that a request came by.
    pub(crate) fn of(head: &Parts) -> &Arc<Self> {
        head.extensions.get().expect("the server puts it into every request")
    }

    /// Returns when it is to be closed, whatever is under way.
    pub(crate) async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// A request's head has arrived.
    pub(crate) fn begin(&self, has_body: bool) {
        self.body_is_unread.store(has_body, Ordering::Relaxed);
        self.answered.store(false, Ordering::Relaxed);
        self.has_request.store(true, Ordering::Relaxed);
        // One that was cut off finds out when it wants to be verified.
        let _ = self.all.enter(self.id, Phase::Unverified);
    }

    /// Whether what is written now answers a request.
    pub(crate) fn has_request(&self) -> bool {
        self.has_request.load(Ordering::Relaxed)
    }

    /// The request's body was read to its end.
    pub(crate) fn body_was_read(&self) {
        self.body_is_unread.store(false, Ordering::Relaxed);
    }

    /// Whether an answer now ends the connection: the rest of the body is in the way of the next request.
    pub(crate) fn ends_with_answer(&self) -> bool {
        self.body_is_unread.load(Ordering::Relaxed)
    }

    /// The request has shown a secret. From here on it makes way for nobody, unless it has done so already.
    pub(crate) fn verified(&self) -> Result<(), MadeWay> {
        self.all.enter(self.id, Phase::Verified)
    }

    /// The answer is on its way.
    pub(crate) fn answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// All that was on its way is out.
    pub(crate) fn flushed(&self) {
        if self.answered.swap(false, Ordering::Relaxed) {
            self.has_request.store(false, Ordering::Relaxed);
            // One that was cut off is being closed.
            let _ = self.all.enter(self.id, Phase::Idle);
        }
    }

    /// Starts to keep the request's body.
    pub(super) fn begin_body(&self, body: &Arc<PartialBody>) {
        self.all.begin_body(self.id, body);
    }

    /// Counts bytes of it that are about to be kept.
    pub(super) fn hold(&self, bytes: usize) -> Result<(), MadeWay> {
        self.all.hold(self.id, bytes)
    }

    /// It is kept no longer, or is somebody else's to count.
    pub(super) fn end_body(&self) {
        self.all.end_body(self.id);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.leave(self.id);
    }
}
