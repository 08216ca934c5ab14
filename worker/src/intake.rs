//! Which messages are started, which wait, and which are held back. Pure: time is a parameter.
//!
//! No destination may keep the others waiting. One may have as many requests under way as there are free
//! slots, so that one alone gets half of them, two a third each, and some are always left for the next
//! ("Dynamic queue length thresholds for shared-memory packet switches", Choudhury and Hahne, 1998).
//! What it may not start yet waits here for a moment, since most are quick; what waits longer is held in
//! Postgres, where it is in nobody's way.

mod lane;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use outbox::message::Message;
use tokio::time::Instant;

use self::lane::Lane;

/// Destinations that are remembered although nothing of theirs is here.
const REMEMBERED: usize = 10_000;

/// Bounds of an [`Intake`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Requests under way at once.
    pub slots: usize,
    /// Of one destination, at the most.
    pub per_destination: usize,
    /// Failures in a row that open a destination's breaker.
    pub breaker_failures: u32,
}

impl Bounds {
    /// So many requests under way are much for one destination.
    fn share(&self) -> usize {
        (self.slots / 8).max(1).min(self.per_destination)
    }
}

/// A message and what is needed to answer for it.
#[derive(Debug)]
pub(crate) struct Received<Delivery> {
    pub message: Message,
    pub delivery: Delivery,
}

/// How a destination fared in one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// It did not answer, or answered that it failed.
    pub failed: bool,
    /// It asks to slow down, and to pause for so long.
    pub slow_down: Option<Duration>,
    /// What was wrong, in a few words.
    pub error: String,
}

/// What becomes of an attempt that was started, in this order.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Its request has ended: its destination may have the next one.
    Answered(Answered),
    /// It is recorded: its slot is free.
    Recorded,
}

/// The end of a request.
#[derive(Debug)]
pub(crate) struct Answered {
    pub destination: Arc<str>,
    pub released: bool,
    /// `None` if the attempt says nothing about its destination.
    pub finding: Option<Finding>,
}

/// What all workers and relays should know of a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// So many failures in a row, the last one perhaps of what was set free.
    Down { error: String, released: bool },
    /// What was set free has failed.
    StillDown { error: String },
    /// It does not keep up, or asks for a pause.
    Slow { pause: Duration, limit: i32, error: String },
    /// What was set free has succeeded.
    Recovered,
}

/// What must make way for others.
pub(crate) struct Held<Delivery> {
    pub messages: Vec<Received<Delivery>>,
    /// What that says about destinations.
    pub reports: Vec<(Arc<str>, Report)>,
}

pub(crate) struct Intake<Delivery> {
    bounds: Bounds,
    lanes: HashMap<Arc<str>, Lane<Delivery>>,
    /// The destinations of what waits, whose turn is next in front.
    turns: VecDeque<Arc<str>>,
    waiting: usize,
    /// Slots that are taken.
    under_way: usize,
}

impl<Delivery> Intake<Delivery> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, lanes: HashMap::new(), turns: VecDeque::new(), waiting: 0, under_way: 0 }
    }

    /// Messages that wait here.
    pub(crate) const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether another message may be taken from the queue.
    pub(crate) const fn has_room(&self) -> bool {
        self.waiting < self.bounds.slots
    }

    /// Messages that may be started, at the most.
    pub(crate) fn startable(&self) -> usize {
        self.waiting.min(self.bounds.slots - self.under_way)
    }

    /// Takes a message in.
    pub(crate) fn push(&mut self, received: Received<Delivery>, now: Instant) {
        let lane = self.lane(&received.message.destination);
        lane.waiting.push_back((received, now));
        let first = (lane.waiting.len() == 1).then(|| Arc::clone(&lane.destination));
        self.waiting += 1;
        self.turns.extend(first);
    }

    /// Takes out what may be started now, up to `limit`, one of each destination in turn.
    pub(crate) fn start(&mut self, limit: usize) -> Vec<Received<Delivery>> {
        let mut started = Vec::new();
        let mut stuck = VecDeque::new();
        while started.len() < limit
            && let Some(destination) = self.turns.pop_front()
        {
            let free = self.bounds.slots - self.under_way;
            let most = self.bounds.per_destination.min(free);
            let lane = self.lanes.get_mut(&destination).expect("what waits has its lane");
            if lane.under_way >= most {
                stuck.push_back(destination);
                continue;
            }
            let (received, _) = lane.waiting.pop_front().expect("it has a turn because it waits");
            lane.under_way += 1;
            self.under_way += 1;
            self.waiting -= 1;
            if !lane.waiting.is_empty() {
                self.turns.push_back(destination);
            }
            started.push(received);
        }
        stuck.append(&mut self.turns);
        self.turns = stuck;
        started
    }

    /// Takes out what must make way: messages of destinations that are known to be sick, and, when there is no
    /// more room, of those that take their share of the slots and let others wait for too long. Also says what
    /// was found out.
    pub(crate) fn hold(&mut self, now: Instant) -> Held<Delivery> {
        let (mut messages, mut reports) = (Vec::new(), Vec::new());
        let (is_full, share) = (!self.has_room(), self.bounds.share());
        self.turns.retain(|destination| {
            let lane = self.lanes.get_mut(destination).expect("what waits has its lane");
            // Without a name there is nothing to hold: messages of an older build.
            if is_full && lane.under_way >= share && lane.keeps_waiting(now) && !destination.is_empty() {
                reports.extend(lane.slow(now).map(|report| (Arc::clone(destination), report)));
                messages.extend(lane.take_all());
            } else if lane.is_sick(now) {
                messages.extend(lane.take_sick());
            }
            !lane.waiting.is_empty()
        });
        self.waiting -= messages.len();
        Held { messages, reports }
    }

    /// Notes what became of an attempt.
    pub(crate) fn note(&mut self, progress: Progress, now: Instant) -> Option<(Arc<str>, Report)> {
        match progress {
            Progress::Answered(answered) => {
                let report = self.answered(&answered, now)?;
                Some((answered.destination, report))
            }
            Progress::Recorded => {
                self.under_way -= 1;
                None
            }
        }
    }

    fn answered(&mut self, finished: &Answered, now: Instant) -> Option<Report> {
        let breaker_failures = self.bounds.breaker_failures;
        let lane = self.lane(&finished.destination);
        lane.under_way -= 1;
        lane.last_end = Some(now);
        let report =
            finished.finding.as_ref().and_then(|finding| lane.learn(finding, finished.released, breaker_failures, now));
        if lane.is_forgettable(now) {
            self.lanes.remove(&finished.destination);
        } else if self.lanes.len() > REMEMBERED {
            self.lanes.retain(|_, lane| lane.under_way > 0 || !lane.waiting.is_empty());
        }
        report.filter(|_| !finished.destination.is_empty())
    }

    /// A claim found nothing to attempt: what was started has ended without a finding.
    pub(crate) fn give_back(&mut self, destination: &str, now: Instant) {
        self.answered(&Answered { destination: destination.into(), released: false, finding: None }, now);
        self.under_way -= 1;
    }

    /// Takes out all that waits: its connection is gone, or the worker stops.
    pub(crate) fn clear(&mut self) -> Vec<Received<Delivery>> {
        self.turns.clear();
        self.waiting = 0;
        let waiting = self.lanes.values_mut().flat_map(Lane::take_all).collect();
        self.lanes.retain(|_, lane| lane.under_way > 0 || lane.failures > 0);
        waiting
    }

    fn lane(&mut self, destination: &str) -> &mut Lane<Delivery> {
        // Not `entry`: that would copy the name each time.
        if !self.lanes.contains_key(destination) {
            let destination: Arc<str> = destination.into();
            self.lanes.insert(Arc::clone(&destination), Lane::new(destination));
        }
        self.lanes.get_mut(destination).expect("it was just put there")
    }
}

#[cfg(test)]
mod tests;
