//! Which tasks are started, which wait, and which make way for others. Pure: time is a parameter.
//!
//! No destination may keep the others waiting. One may have as many requests under way as there are free
//! slots, so that one alone gets half of them, two a third each, and some are always left for the next
//! ("Dynamic queue length thresholds for shared-memory packet switches", Choudhury and Hahne, 1998). And those that
//! are not known to be well, however many they are, never get all of them: see [`strangers`]. What may not start yet
//! waits here for a moment, since most are quick; what waits longer is given back to Postgres, where it is in nobody's
//! way.

mod lane;
mod progress;
mod strangers;

use std::collections::{HashMap, HashSet, VecDeque};

use outbox::broker::task::Task;
use outbox::destination::Destination;
use tokio::time::Instant;

use self::lane::Lane;
pub(crate) use self::lane::SLOT_LASTS;
pub(crate) use self::progress::{Answered, Finding, Found, MakesWay, Progress, Received};
use self::strangers::Strangers;

/// Destinations that are remembered although nothing of theirs is here, and tasks that were put off.
const REMEMBERED: usize = 50_000;

/// Bounds of an [`Intake`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Requests under way at once.
    pub slots: usize,
    /// Of one destination, at the most.
    pub per_destination: usize,
    /// Failures in a row that open a destination's breaker.
    pub breaker_failures: u32,
    /// Bytes of large payloads under way at once; one alone may have more.
    pub payload_bytes: u64,
}

impl Bounds {
    /// So many requests under way, or tasks that wait, are much for one destination.
    fn share(&self) -> usize {
        (self.slots / 8).max(1).min(self.per_destination)
    }
}

pub(crate) struct Intake<Delivery> {
    bounds: Bounds,
    lanes: HashMap<Destination, Lane<Delivery>>,
    /// The destinations of what waits, whose turn is next in front.
    turns: VecDeque<Destination>,
    waiting: usize,
    /// Slots that are taken.
    under_way: usize,
    strangers: Strangers,
    /// Outbox rows of tasks that were put off once.
    put_off: HashSet<i64>,
    payload_bytes: u64,
}

impl<Delivery> Intake<Delivery> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            waiting: 0,
            under_way: 0,
            strangers: Strangers::new(bounds.slots),
            put_off: HashSet::new(),
            payload_bytes: 0,
        }
    }

    /// Tasks that wait here.
    pub(crate) const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether another task may be taken from the queue.
    pub(crate) const fn has_room(&self) -> bool {
        self.waiting < self.bounds.slots
    }

    /// Whether there are slots for more requests.
    pub(crate) const fn has_free_slots(&self) -> bool {
        self.under_way < self.bounds.slots
    }

    /// Tasks that may be started, at the most.
    pub(crate) fn startable(&self) -> usize {
        self.waiting.min(self.bounds.slots - self.under_way)
    }

    /// The tasks that have waited here since before this moment.
    pub(crate) fn waiting_since(&self, moment: Instant) -> impl Iterator<Item = &Task> {
        let waiting = self.turns.iter().flat_map(|destination| &self.lanes[destination].waiting);
        waiting.filter(move |(_, since)| *since <= moment).map(|(received, _)| &received.task)
    }

    /// Takes a task in.
    pub(crate) fn push(&mut self, received: Received<Delivery>, now: Instant) {
        let lane = self.lane(&received.task.destination);
        lane.limited = received.task.limited;
        lane.waiting.push_back((received, now));
        let first = (lane.waiting.len() == 1).then(|| lane.destination.clone());
        self.waiting += 1;
        self.turns.extend(first);
    }

    /// Takes out what may be started now, up to `limit`, one of each destination in turn.
    pub(crate) fn start(&mut self, limit: usize, now: Instant) -> Vec<Received<Delivery>> {
        let mut started = Vec::new();
        let mut stuck = VecDeque::new();
        self.strangers.look(now);
        while started.len() < limit
            && let Some(destination) = self.turns.pop_front()
        {
            let Some(received) = self.start_one(&destination, now) else {
                stuck.push_back(destination);
                continue;
            };
            if !self.lanes[&destination].waiting.is_empty() {
                self.turns.push_back(destination);
            }
            started.push(received);
        }
        stuck.append(&mut self.turns);
        self.turns = stuck;
        started
    }

    fn start_one(&mut self, destination: &Destination, now: Instant) -> Option<Received<Delivery>> {
        let free = self.bounds.slots - self.under_way;
        let most = self.bounds.per_destination.min(free);
        let lane = self.lanes.get_mut(destination).expect("what waits has its lane");
        let (next, _) = lane.waiting.front().expect("it has a turn because it waits");
        let payload_bytes = self.payload_bytes + u64::from(next.task.payload_bytes);
        let fits =
            self.payload_bytes == 0 || next.task.payload_bytes == 0 || payload_bytes <= self.bounds.payload_bytes;
        let is_newcomer = lane.is_newcomer() && !self.put_off.contains(&next.task.outbox_id);
        let is_welcome = lane.is_well || self.strangers.have_room(is_newcomer);
        if lane.under_way >= most || !fits || !is_welcome || !lane.takes_slot(now) {
            return None;
        }
        let (mut received, _) = lane.waiting.pop_front().expect("it was there a moment ago");
        received.ticket = (!lane.is_well).then(|| self.strangers.enter(now));
        self.put_off.remove(&received.task.outbox_id);
        lane.under_way += 1;
        self.payload_bytes = payload_bytes;
        self.under_way += 1;
        self.waiting -= 1;
        Some(received)
    }

    /// How many slots of their limits the destinations of what waits need, of those that have not been asked for; they
    /// are taken as asked for from now on.
    pub(crate) fn wanted_slots(&mut self, now: Instant) -> Vec<(Destination, u32)> {
        let mut wanted = Vec::new();
        for destination in &self.turns {
            let lane = self.lanes.get_mut(destination).expect("what waits has its lane");
            wanted.extend(lane.ask_for_slots(now).map(|count| (destination.clone(), count)));
        }
        wanted
    }

    /// When the next slot of a limit may be used.
    pub(crate) fn next_slot(&self) -> Option<Instant> {
        self.turns.iter().filter_map(|destination| self.lanes[destination].next_slot()).min()
    }

    /// Takes out what must make way: tasks of destinations that are known to be sick, those of a limited one that
    /// it cannot take soon, and, when there is not much room left, or strangers are many, those that let others wait for
    /// too long. Also says what was found out.
    pub(crate) fn make_way(&mut self, now: Instant) -> MakesWay<Delivery> {
        let mut way = MakesWay { sick: Vec::new(), crowded: Vec::new(), hanging: Vec::new(), found: Vec::new() };
        let (is_full, is_tight) = (!self.has_room(), self.waiting * 2 >= self.bounds.slots);
        let (share, are_many) = (self.bounds.share(), self.strangers.are_many());
        self.turns.retain(|destination| {
            let lane = self.lanes.get_mut(destination).expect("what waits has its lane");
            if lane.limited && lane.waiting.len() > share {
                way.found.extend(lane.over_limit(now));
                way.sick.extend(lane.take_all_but(share));
            } else if is_full && lane.under_way >= share && lane.keeps_waiting(now) {
                way.found.extend(lane.slow(now));
                way.sick.extend(lane.take_all_but(0));
            } else if lane.is_sick(now) {
                way.sick.extend(lane.take_sick());
            } else if lane.keeps_waiting(now)
                && (is_tight && (!lane.is_well || lane.hangs(now)) || are_many && !lane.is_well)
            {
                let those = if lane.under_way > 0 { &mut way.hanging } else { &mut way.crowded };
                those.extend(lane.take_all_but(0));
            }
            !lane.waiting.is_empty()
        });
        self.waiting -= way.sick.len() + way.crowded.len() + way.hanging.len();
        if self.put_off.len() > REMEMBERED {
            self.put_off.clear();
        }
        let put_off = way.crowded.iter().chain(&way.hanging);
        self.put_off.extend(put_off.map(|received| received.task.outbox_id));
        way
    }

    /// Notes what became of an attempt.
    pub(crate) fn note(&mut self, progress: Progress, now: Instant) -> Option<Found> {
        match progress {
            Progress::Answered(answered) => self.answered(&answered, now),
            Progress::Recorded => {
                self.under_way -= 1;
                None
            }
            Progress::Slots { destination, at } => {
                if let Some(lane) = self.lanes.get_mut(&destination) {
                    lane.got_slots(at, now);
                }
                None
            }
        }
    }

    fn answered(&mut self, ended: &Answered, now: Instant) -> Option<Found> {
        let breaker_failures = self.bounds.breaker_failures;
        self.payload_bytes -= u64::from(ended.payload_bytes);
        if let Some(ticket) = ended.ticket {
            self.strangers.leave(ticket);
        }
        let lane = self.lane(&ended.destination);
        lane.under_way -= 1;
        lane.last_end = Some(now);
        let finding = ended.finding.as_ref();
        let found = finding.and_then(|finding| lane.learn(finding, ended.released, breaker_failures, now));
        if self.lanes.len() > REMEMBERED {
            self.lanes.retain(|_, lane| lane.under_way > 0 || !lane.waiting.is_empty());
        }
        found
    }

    /// A claim found nothing to attempt: what was started has ended without a finding.
    pub(crate) fn give_back(&mut self, received: &Received<Delivery>, now: Instant) {
        self.answered(&Answered::new(&received.task, received.ticket, None), now);
        self.under_way -= 1;
    }

    /// Takes out all that waits: its connection is gone, or the worker stops.
    pub(crate) fn clear(&mut self) -> Vec<Received<Delivery>> {
        self.turns.clear();
        self.waiting = 0;
        self.lanes.values_mut().flat_map(|lane| lane.take_all_but(0)).collect()
    }

    fn lane(&mut self, destination: &Destination) -> &mut Lane<Delivery> {
        self.lanes.entry(destination.clone()).or_insert_with(|| Lane::new(destination.clone()))
    }
}

#[cfg(test)]
mod tests;
