//! The body of a request, which knows whether anybody has begun to send it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

/// A body goes out in pieces of this size. Between two of them the connection looks whether the receiver has answered
/// already: one that refuses a large body and closes would otherwise be met by the next write, and its answer be lost.
const PIECE: usize = 65_536;

/// After the first piece there is time for an answer: most that refuse a body do so by its head.
const FIRST_LOOK: Duration = Duration::from_millis(10);

/// hyper asks for more of the body twice before it reads again (`poll_loop` in its HTTP/1 dispatcher).
const LOOKS: u8 = 2;

/// How often whoever waits for a request's turn says that the process is alive, and after how long without that it is taken
/// to have stood still.
pub(super) const TICK: Duration = Duration::from_millis(250);
const STOOD_STILL: Duration = Duration::from_secs(1);

/// Whether a request has begun to leave. A connection asks for the body when it is the request's turn: over HTTP/2 that is
/// when the receiver lets it have a stream. Until then at most the request's head is sent, which is no request without the
/// body that it announces.
///
/// What waits while its process stands still must not leave when that is over, before anybody has looked at the time.
#[derive(Clone, Debug)]
pub(super) struct Turn(Arc<State>);

#[derive(Debug)]
struct State {
    stage: AtomicU8,
    since: Instant,
    /// Milliseconds after `since`.
    alive: AtomicU64,
}

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const WITHDRAWN: u8 = 2;

impl Turn {
    /// Of a request with this payload. For one that is empty nobody asks, so it cannot be known to wait.
    pub(super) fn of(payload: &Bytes) -> Self {
        let stage = AtomicU8::new(if payload.is_empty() { BEGUN } else { WAITING });
        Self(Arc::new(State { stage, since: Instant::now(), alive: AtomicU64::new(0) }))
    }

    /// Withdraws the request when nobody waits for it any more: over HTTP/2 it could still have its turn later.
    pub(super) fn while_waited_for(&self) -> WaitedFor {
        WaitedFor(self.clone())
    }

    /// Whether it is sure that the request does not leave any more.
    pub(super) fn withdraw(&self) -> bool {
        self.leave_waiting(WITHDRAWN)
    }

    pub(super) fn is_withdrawn(&self) -> bool {
        self.0.stage.load(Ordering::SeqCst) == WITHDRAWN
    }

    /// Whether the process has stood still just now.
    pub(super) fn stood_still(&self) -> bool {
        let alive = Duration::from_millis(self.0.alive.load(Ordering::SeqCst));
        self.0.since.elapsed().saturating_sub(alive) > STOOD_STILL
    }

    pub(super) fn is_alive(&self) {
        let alive = u64::try_from(self.0.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.alive.store(alive, Ordering::SeqCst);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.0.stage.load(Ordering::SeqCst) == BEGUN
    }

    fn begin(&self) -> bool {
        if self.stood_still() {
            self.withdraw();
        }
        self.leave_waiting(BEGUN)
    }

    fn leave_waiting(&self, to: u8) -> bool {
        self.0.stage.compare_exchange(WAITING, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// See [`Turn::while_waited_for`].
pub(super) struct WaitedFor(Turn);

impl Drop for WaitedFor {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

/// A payload on its way.
pub(super) struct Payload {
    rest: Bytes,
    turn: Turn,
    is_begun: bool,
    first_look: Option<Pin<Box<Sleep>>>,
    /// How often to put the connection off before the next piece.
    looks: u8,
}

impl Payload {
    pub(super) fn new(bytes: Bytes, turn: Turn) -> Self {
        Self { rest: bytes, turn, is_begun: false, first_look: None, looks: 0 }
    }

    fn next_piece(&mut self) -> Option<Bytes> {
        self.looks = LOOKS;
        let length = self.rest.len().min(PIECE);
        (length > 0).then(|| self.rest.split_to(length))
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if !self.is_begun {
            if self.rest.is_empty() {
                return Poll::Ready(None);
            }
            if !self.turn.begin() {
                return Poll::Ready(Some(Err(io::Error::other("the request was withdrawn"))));
            }
            self.is_begun = true;
            self.first_look = (self.rest.len() > PIECE).then(|| Box::pin(sleep(FIRST_LOOK)));
        } else if let Some(first_look) = &mut self.first_look {
            ready!(first_look.as_mut().poll(context));
        }
        if let Some(looks) = self.looks.checked_sub(1) {
            self.looks = looks;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.next_piece().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
