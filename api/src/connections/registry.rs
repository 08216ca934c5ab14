//! All open connections within their limits, and the cutting off of those that have to go.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::{Counter, Gauge};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::partial_body::{MadeWay, PartialBody};
use super::table::{Phase, Table};

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
        while self.table().entries.len() >= self.limits.connections && !self.cut_one() {
            let _ = timeout(self.limits.moment, self.changed.notified()).await;
        }
    }

    /// Cuts off the first who has to go, if somebody may.
    pub(crate) fn cut_one(&self) -> bool {
        let mut table = self.table();
        let Some(id) = table.first_to_go(self.limits.moment) else { return false };
        let entry = table.remove(id).expect("it is one of them");
        let times = table.connections_made_way.happened();
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

    /// Counts one more, which is cut off by this token.
    pub(super) fn admit(&self, cut: CancellationToken) -> u64 {
        let mut table = self.table();
        let id = table.insert(cut);
        self.measure(&table);
        id
    }

    /// It has ended.
    pub(super) fn leave(&self, id: u64) {
        let mut table = self.table();
        let entry = table.remove(id);
        self.measure(&table);
        drop(table);
        drop(entry);
        self.changed.notify_one();
    }

    /// It has got so far, unless it was cut off.
    pub(super) fn enter(&self, id: u64, phase: Phase) -> Result<(), MadeWay> {
        let entered = self.table().enter(id, phase);
        // Who is verified makes way for nobody: that is no news to who waits for room.
        if phase != Phase::Verified {
            self.changed.notify_one();
        }
        entered.ok_or(MadeWay)
    }

    /// It brings this body from here on.
    pub(super) fn begin_body(&self, id: u64, body: &Arc<PartialBody>) {
        if let Some(entry) = self.table().entries.get_mut(&id) {
            entry.body = Some(Arc::clone(body));
        }
    }

    /// Nothing of its body is counted any more.
    pub(super) fn end_body(&self, id: u64) {
        let mut table = self.table();
        let body = table.let_go(id);
        self.measure(&table);
        drop(table);
        drop(body);
    }

    /// Counts bytes that are about to be held for a connection. Whoever has stood still the longest makes way for them.
    pub(super) fn hold(&self, id: u64, bytes: usize) -> Result<(), MadeWay> {
        let mut table = self.table();
        let Some(made_way) = table.hold(id, bytes, self.limits.unverified_bytes) else { return Err(MadeWay) };
        let times = if made_way.is_empty() { None } else { table.bodies_made_way.happened() };
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

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn measure(&self, table: &Table) {
        let number = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
        self.meters.open.set(number(table.entries.len()));
        self.meters.unverified_bytes.set(number(table.held));
    }
}
