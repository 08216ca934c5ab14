//! What the receiver remembers: the newest requests, exact counts, and how often each webhook came.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use crate::{Answer, Received, Signature};

/// How much is kept. Counts stay exact beyond it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests kept; the oldest go first.
    pub requests: usize,
    /// Memory for requests kept, in bytes; the oldest go first.
    pub bytes: usize,
    /// Webhooks whose earlier requests are counted for `fail_times`; the oldest are forgotten first.
    pub identities: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests: 100_000, bytes: 1024 * 1024 * 1024, identities: 1_000_000 }
    }
}

/// Exact counts since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// POST requests in all.
    pub received: u64,
    /// Those whose signature was right.
    pub verified: u64,
    /// Those without a signature.
    pub unsigned: u64,
    /// Those signed, by a receiver without a secret.
    pub unchecked: u64,
    /// Those whose signature was wrong.
    pub invalid: u64,
    /// Answers by status.
    pub answered: BTreeMap<u16, u64>,
    /// Requests that were not to get an answer.
    pub hung: u64,
    /// Requests whose connection was dropped.
    pub reset: u64,
    /// Bytes of all bodies.
    pub body_bytes: u64,
}

/// The condition did not come true in time.
#[derive(Debug, thiserror::Error)]
#[error("after {timeout:?} the receiver has {received} requests and still not what was waited for")]
pub struct WaitTimedOut {
    timeout: Duration,
    received: u64,
}

/// The memory of a receiver, shared by its connections.
#[derive(Debug)]
pub(crate) struct Kept {
    limits: Limits,
    inner: Mutex<Inner>,
    /// Raised after every arrival and every answer; the value is of no interest.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Inner {
    requests: VecDeque<Arc<Received>>,
    bytes: usize,
    counts: Counts,
    earlier: HashMap<String, u32>,
    identities: VecDeque<String>,
}

impl Kept {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, inner: Mutex::default(), changed: watch::Sender::new(()) }
    }

    /// Keeps one request, numbered by its arrival.
    pub(crate) fn keep(&self, build: impl FnOnce(u64) -> Received) -> Arc<Received> {
        let request = {
            let mut inner = self.lock();
            inner.counts.received += 1;
            let request = Arc::new(build(inner.counts.received));
            inner.count(&request);
            inner.bytes += request.size();
            inner.requests.push_back(Arc::clone(&request));
            inner.evict(self.limits);
            request
        };
        self.changed.send_replace(());
        request
    }

    /// How many requests of this webhook came before; counts this one.
    pub(crate) fn count_earlier(&self, identity: &str) -> u32 {
        let mut inner = self.lock();
        if let Some(count) = inner.earlier.get_mut(identity) {
            *count += 1;
            return *count - 1;
        }
        if inner.identities.len() >= self.limits.identities
            && let Some(oldest) = inner.identities.pop_front()
        {
            inner.earlier.remove(&oldest);
        }
        inner.earlier.insert(identity.to_owned(), 1);
        inner.identities.push_back(identity.to_owned());
        0
    }

    /// Counts what a request got.
    pub(crate) fn note(&self, request: &Received, answer: &Answer) {
        {
            let counts = &mut self.lock().counts;
            match answer {
                Answer::Status(status) => {
                    *counts.answered.entry(*status).or_default() += 1;
                    request.note_answered(*status);
                }
                Answer::Hang => counts.hung += 1,
                Answer::Reset => counts.reset += 1,
            }
        }
        self.changed.send_replace(());
    }

    /// All that is kept, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Received>> {
        self.lock().requests.iter().cloned().collect()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// Waits until the condition holds for what is kept. Woken by arrivals and answers.
    pub(crate) async fn wait_for(
        &self,
        mut condition: impl FnMut(&[Arc<Received>]) -> bool,
        timeout: Duration,
    ) -> Result<Vec<Arc<Received>>, WaitTimedOut> {
        // Subscribed before the first look, so that no arrival falls in between.
        let mut changed = self.changed.subscribe();
        let waiting = async {
            loop {
                changed.borrow_and_update();
                let requests = self.all();
                if condition(&requests) {
                    return requests;
                }
                if changed.changed().await.is_err() {
                    // The sender lives in self, so this cannot be; waiting for the time-out is harmless.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(timeout, waiting)
            .await
            .map_err(|_| WaitTimedOut { timeout, received: self.counts().received })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every section leaves consistent data behind, also one that panicked.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn count(&mut self, request: &Received) {
        let counter = match request.signature {
            Signature::Verified => &mut self.counts.verified,
            Signature::Unsigned => &mut self.counts.unsigned,
            Signature::Unchecked => &mut self.counts.unchecked,
            Signature::Invalid(_) => &mut self.counts.invalid,
        };
        *counter += 1;
        self.counts.body_bytes += request.body.len() as u64;
    }

    fn evict(&mut self, limits: Limits) {
        while self.requests.len() > limits.requests || self.bytes > limits.bytes {
            let Some(oldest) = self.requests.pop_front() else {
                return;
            };
            self.bytes -= oldest.size();
        }
    }
}
