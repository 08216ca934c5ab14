//! Who is connected, how far each is, and who has stood still the longest.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::partial_body::PartialBody;
use crate::log_throttle::LogThrottle;

/// A quarter of all connections is what strangers may have at the callers' expense, and what is not few.
const SHARE: usize = 4;

#[derive(Default)]
pub(super) struct Table {
    last_id: u64,
    pub entries: HashMap<u64, Entry>,
    /// The sum over the entries.
    pub held: usize,
    pub connections_made_way: LogThrottle,
    pub bodies_made_way: LogThrottle,
}

pub(super) struct Entry {
    pub phase: Phase,
    /// Whether a request that came by it has shown a secret.
    pub known: bool,
    /// When it last changed its phase or brought bytes of a body.
    pub moved: Instant,
    /// The body that is being read, and the bytes that are counted for it.
    pub body: Option<Arc<PartialBody>>,
    pub held: usize,
    pub cut: CancellationToken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No request is under way: silent, kept alive, or in the middle of a head.
    Idle,
    /// A request is under way and has shown no secret.
    Unverified,
    /// A request is under way that has.
    Verified,
}

impl Table {
    /// A new one, idle for now.
    pub(super) fn insert(&mut self, cut: CancellationToken) -> u64 {
        self.last_id += 1;
        let entry = Entry { phase: Phase::Idle, known: false, moved: Instant::now(), body: None, held: 0, cut };
        self.entries.insert(self.last_id, entry);
        self.last_id
    }

    /// Who goes first if somebody has to: whoever has stood still for a moment, the idle before those with a request and
    /// strangers before callers; after them, whoever moved the longest ago. No caller goes while strangers have
    /// their share. And nobody who has just come goes while there are few who could, or none would get to speak.
    pub(super) fn first_to_go(&self, moment: Duration) -> Option<u64> {
        let share = self.entries.len().div_ceil(SHARE);
        let strangers = self.entries.values().filter(|entry| !entry.known).count();
        let may_go = |entry: &Entry| entry.phase != Phase::Verified && !(entry.known && strangers >= share);
        let candidates: Vec<(u64, &Entry)> =
            self.entries.iter().filter(|(_, entry)| may_go(entry)).map(|(id, entry)| (*id, entry)).collect();

        let now = Instant::now();
        let is_still = |entry: &Entry| now.duration_since(entry.moved) >= moment;
        let rank = |entry: &Entry| {
            let still = is_still(entry);
            (!still, still && entry.phase != Phase::Idle, still && entry.known, entry.moved)
        };
        let (id, first) = candidates.iter().min_by_key(|(_, entry)| rank(entry))?;
        (is_still(first) || candidates.len() >= share).then_some(*id)
    }

    /// Moves it to a phase; `None` if it was cut off.
    pub(super) fn enter(&mut self, id: u64, phase: Phase) -> Option<()> {
        let entry = self.entries.get_mut(&id)?;
        (entry.phase, entry.moved) = (phase, Instant::now());
        entry.known |= phase == Phase::Verified;
        Some(())
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.held -= entry.held;
        Some(entry)
    }

    /// No bytes are counted for it any more.
    pub(super) fn let_go(&mut self, id: u64) -> Option<Arc<PartialBody>> {
        let entry = self.entries.get_mut(&id)?;
        self.held -= std::mem::take(&mut entry.held);
        entry.body.take()
    }

    /// Counts more bytes; returns the bodies that make way for them, or `None` if it has made way itself.
    pub(super) fn hold(&mut self, id: u64, bytes: usize, limit: usize) -> Option<Vec<Arc<PartialBody>>> {
        let entry = self.entries.get_mut(&id)?;
        entry.body.as_ref()?;
        entry.moved = Instant::now();
        let mut made_way = Vec::new();
        if entry.phase == Phase::Verified {
            return Some(made_way);
        }
        entry.held += bytes;
        self.held += bytes;
        while self.held > limit {
            let may_make_way = |entry: &Entry| entry.phase == Phase::Unverified && entry.held > 0;
            let others = self.entries.iter().filter(|(other, entry)| **other != id && may_make_way(entry));
            // One body alone is hardly too much: the limit is no less than the longest.
            let Some((&other, _)) = others.min_by_key(|(_, entry)| entry.moved) else { break };
            made_way.extend(self.let_go(other));
        }
        Some(made_way)
    }
}
