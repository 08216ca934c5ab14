//! The open connections, what the strangers among them hold, and who makes way when that is too much.
//!
//! Whoever connects or sends a body costs something before a secret has been shown. Both are bounded, and nobody is
//! kept out by whoever came first and stands still: that one goes. A request that is verified stays until its
//! answer is out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::request::Parts;
use metrics::{Counter, Gauge};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::blocks::Blocks;

mod table;

use table::{Phase, Table};

/// All of them.
pub(crate) struct Connections {
    limits: Limits,
    /// Never held across an await, nor while a body is copied or freed.
    table: Mutex<Table>,
    /// One of them ended, or could make way now.
    changed: Notify,
    meters: Meters,
}

/// What all of them may be together.
pub(crate) struct Limits {
    pub connections: usize,
    /// Bytes of bodies that nobody has vouched for; no less than the longest body.
    pub unverified_bytes: usize,
    /// What each of them gets to bring its request, or the next piece of it, before it counts as standing still.
    pub moment: Duration,
}

struct Meters {
    open: Gauge,
    connections_made_way: Counter,
    unverified_bytes: Gauge,
    unverified_made_way: Counter,
}

/// One of them. It is no longer counted when this is dropped.
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

/// What has arrived of a body.
struct Body {
    /// `None` once it has made way.
    blocks: Mutex<Option<Blocks>>,
    made_way: CancellationToken,
}

/// A body while it arrives. Its bytes are no longer counted when this is dropped.
pub(crate) struct Receiving {
    connection: Arc<Connection>,
    body: Arc<Body>,
}

/// It stood still while others brought bytes, or wanted its connection.
#[derive(Debug)]
pub(crate) struct MadeWay;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connections {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            table: Mutex::default(),
            changed: Notify::new(),
            meters: Meters {
                open: metrics::gauge!("outhook_api_connections"),
                connections_made_way: metrics::counter!("outhook_api_connections_made_way_total"),
                unverified_bytes: metrics::gauge!("outhook_api_unverified_bytes"),
                unverified_made_way: metrics::counter!("outhook_api_unverified_made_way_total"),
            },
        })
    }

    /// Returns when one more may be opened: at once, unless all that are open have verified requests under way or have
    /// moved just now.
    pub(crate) async fn make_room(&self) {
        while lock(&self.table).entries.len() >= self.limits.connections && !self.cut_one() {
            let _ = timeout(self.limits.moment, self.changed.notified()).await;
        }
    }

    /// Cuts off the first who has to go, if somebody may.
    pub(crate) fn cut_one(&self) -> bool {
        let mut table = lock(&self.table);
        let Some(id) = table.first_to_go(self.limits.moment) else { return false };
        let entry = table.remove(id).expect("it is one of them");
        let times = table.connections_made_way.now();
        self.measure(&table);
        drop(table);
        entry.cut.cancel();
        if let Some(body) = entry.body {
            body.make_way();
        }
        self.meters.connections_made_way.increment(1);
        if let Some(times) = times {
            warn!(connections = times, "connections that stood still were closed for others: see MAX_CONNECTIONS");
        }
        true
    }

    pub(crate) fn open(self: &Arc<Self>) -> Arc<Connection> {
        let cut = CancellationToken::new();
        let mut table = lock(&self.table);
        let id = table.insert(cut.clone());
        self.measure(&table);
        drop(table);
        Arc::new(Connection {
            id,
            all: Arc::clone(self),
            cut,
            has_request: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            body_is_unread: AtomicBool::new(false),
        })
    }

    fn measure(&self, table: &Table) {
        let number = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
        self.meters.open.set(number(table.entries.len()));
        self.meters.unverified_bytes.set(number(table.held));
    }

    /// Counts bytes that are about to be held for a connection. Whoever has stood still the longest makes way for them.
    fn hold(&self, id: u64, bytes: usize) -> Result<(), MadeWay> {
        let mut table = lock(&self.table);
        let Some(made_way) = table.hold(id, bytes, self.limits.unverified_bytes) else { return Err(MadeWay) };
        let times = if made_way.is_empty() { None } else { table.bodies_made_way.now() };
        self.measure(&table);
        drop(table);
        for body in &made_way {
            body.make_way();
        }
        self.meters.unverified_made_way.increment(made_way.len() as u64);
        if let Some(times) = times {
            warn!(times, "requests that stood still made way for others: see UNVERIFIED_BODY_BYTES");
        }
        Ok(())
    }
}

impl Connection {
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
        lock(&self.all.table).enter(self.id, Phase::Unverified);
        self.all.changed.notify_one();
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
        lock(&self.all.table).enter(self.id, Phase::Verified).ok_or(MadeWay)
    }

    /// The answer is on its way.
    pub(crate) fn answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// All that was on its way is out.
    pub(crate) fn flushed(&self) {
        if self.answered.swap(false, Ordering::Relaxed) {
            self.has_request.store(false, Ordering::Relaxed);
            lock(&self.all.table).enter(self.id, Phase::Idle);
            self.all.changed.notify_one();
        }
    }

    /// Starts to keep the request's body.
    pub(crate) fn receive(self: &Arc<Self>) -> Receiving {
        let body = Arc::new(Body { blocks: Mutex::new(Some(Blocks::default())), made_way: CancellationToken::new() });
        if let Some(entry) = lock(&self.all.table).entries.get_mut(&self.id) {
            entry.body = Some(Arc::clone(&body));
        }
        Receiving { connection: Arc::clone(self), body }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut table = lock(&self.all.table);
        table.remove(self.id);
        self.all.measure(&table);
        drop(table);
        self.all.changed.notify_one();
    }
}

impl Receiving {
    /// Returns when the body has made way for others.
    pub(crate) async fn made_way(&self) {
        self.body.made_way.cancelled().await;
    }

    /// Keeps a piece of the body. What is counted is the memory that it takes.
    pub(crate) fn append(&self, piece: &[u8]) -> Result<(), MadeWay> {
        let more = lock(&self.body.blocks).as_ref().ok_or(MadeWay)?.growth(piece.len());
        self.connection.all.hold(self.connection.id, more)?;
        lock(&self.body.blocks).as_mut().ok_or(MadeWay)?.append(piece);
        Ok(())
    }

    /// The whole body, which is verified now or refused.
    pub(crate) fn finish(self) -> Result<Vec<u8>, MadeWay> {
        let blocks = lock(&self.body.blocks).take();
        blocks.map(Blocks::joined).ok_or(MadeWay)
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let mut table = lock(&self.connection.all.table);
        table.let_go(self.connection.id);
        self.connection.all.measure(&table);
    }
}

impl Body {
    fn make_way(&self) {
        let freed = lock(&self.blocks).take();
        drop(freed);
        self.made_way.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(connections: usize) -> Arc<Connections> {
        Connections::new(Limits { connections, unverified_bytes: 100, moment: Duration::ZERO })
    }

    /// A request that has brought so many bytes of its body.
    fn bring(connection: &Arc<Connection>, bytes: usize) -> Receiving {
        connection.begin(true);
        let receiving = connection.receive();
        receiving.append(&vec![0; bytes]).expect("it brings bytes");
        receiving
    }

    #[test]
    fn the_body_that_stands_still_the_longest_makes_way() {
        let connections = connections(10);
        let [first, second, third] = [0; 3].map(|_| connections.open());
        let (still, moving) = (bring(&first, 40), bring(&second, 1));
        moving.append(&[]).expect("it is there");
        let vouched = bring(&third, 30);
        third.verified().expect("it is there");
        let last = bring(&connections.open(), 29);
        still.append(&[]).expect("there is room for all");
        drop(last);

        let (fourth, fifth) = (connections.open(), connections.open());
        let _filling = bring(&fourth, 29);
        let _more = bring(&fifth, 1);
        assert!(moving.append(&[]).is_err(), "it was the second's turn");
        assert_eq!(still.finish().expect("it moved after that").len(), 40);
        assert_eq!(vouched.finish().expect("it is verified").len(), 30);
        assert_eq!(lock(&connections.table).held, 30, "of the fourth and the fifth");
    }

    #[tokio::test]
    async fn a_connection_makes_way_unless_it_is_verified() {
        let connections = connections(3);
        let [verified, unverified, idle] = [0; 3].map(|_| connections.open());
        verified.begin(true);
        verified.verified().expect("it is there");
        unverified.begin(true);
        connections.make_room().await;
        idle.cut().await;
        assert!(idle.verified().is_err(), "it is too late for that");

        let third = connections.open();
        third.begin(true);
        connections.make_room().await;
        unverified.cut().await;
        third.verified().expect("it is there");
        let fourth = connections.open();
        fourth.begin(true);
        fourth.verified().expect("it is there");
        assert!(!connections.cut_one(), "all are verified");
        tokio::join!(connections.make_room(), async {
            verified.answered();
            verified.flushed();
        });
        verified.cut().await;
    }
    #[tokio::test]
    async fn a_caller_stays_longer_than_strangers_who_are_idle() {
        let connections = connections(3);
        let [known, first, second] = [0; 3].map(|_| connections.open());
        known.begin(true);
        known.verified().expect("it is there");
        for connection in [&first, &second, &known] {
            connection.begin(true);
            connection.answered();
            connection.flushed();
        }
        for stranger in [first, second] {
            assert!(connections.cut_one());
            stranger.cut().await;
        }
        assert!(connections.cut_one());
        known.cut().await;
    }

    #[test]
    fn whoever_has_just_come_may_speak_first() {
        let moment = Duration::from_hours(1);
        let connections = Connections::new(Limits { connections: 10, unverified_bytes: 100, moment });
        let callers = [0; 4].map(|_| connections.open());
        for caller in &callers {
            caller.verified().expect("it is there");
        }
        let fresh = connections.open();
        assert!(!connections.cut_one(), "it would be cut off before it can speak");
        let _more = connections.open();
        assert!(connections.cut_one(), "there are enough of them");
        assert!(fresh.verified().is_err(), "it was the first to come");
    }
}
