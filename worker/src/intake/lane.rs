//! What is here of one destination, and what it has shown of itself.

use std::collections::VecDeque;
use std::time::Duration;

use outbox::destination::breaker::Finding as Report;
use outbox::destination::{Destination, TICK};
use tokio::time::Instant;

use super::{Finding, Found, Received};

/// When there is not much room left, what waits makes way for others if it has waited this long, and in this time not one
/// of its destination's requests has ended: it hangs.
pub(super) const PATIENCE: Duration = Duration::from_millis(200);

/// What waits this long makes way in any case: it is slow.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// For so long after a destination was found sick its tasks are held without a try. Those that the relay
/// published before it knew come within this time.
const KNOWN_SICK: Duration = Duration::from_secs(5);

/// Between two reports of one kind on a destination.
const REPORT_SPACING: Duration = Duration::from_secs(1);

/// Slots of a limit are asked for so many at a time, at the most.
const SLOTS_AT_A_TIME: usize = 50;

/// A slot that was not used this long after its time is not used: what was late would meet what is not.
pub(crate) const SLOT_LASTS: Duration = Duration::from_millis(40);

/// Before slots are asked for again that could not be had.
const ASK_SPACING: Duration = Duration::from_millis(100);

/// What is here of one destination.
pub(super) struct Lane<Delivery> {
    pub destination: Destination,
    /// Requests that were started and have not ended.
    pub under_way: usize,
    pub waiting: VecDeque<(Received<Delivery>, Instant)>,
    pub last_end: Option<Instant>,
    pub failures: u32,
    /// Whether its last attempt that says anything was a success.
    pub is_well: bool,
    /// Whether it has a limit a second, by what was last heard.
    pub limited: bool,
    slots: VecDeque<Instant>,
    asked: bool,
    ask_from: Option<Instant>,
    sick_until: Option<Instant>,
    reported: Option<(std::mem::Discriminant<Report>, Instant)>,
}

impl<Delivery> Lane<Delivery> {
    pub(super) const fn new(destination: Destination) -> Self {
        Self {
            destination,
            under_way: 0,
            waiting: VecDeque::new(),
            last_end: None,
            failures: 0,
            is_well: false,
            limited: false,
            slots: VecDeque::new(),
            asked: false,
            ask_from: None,
            sick_until: None,
            reported: None,
        }
    }

    /// Whether nothing speaks against it but that it is not known.
    pub(super) const fn is_newcomer(&self) -> bool {
        self.failures == 0 && self.under_way == 0
    }

    /// Whether what waits here has waited for too long.
    pub(super) fn keeps_waiting(&self, now: Instant) -> bool {
        let has_ended = self.last_end.is_some_and(|end| now - end < PATIENCE);
        let patience = if has_ended { LONGEST_WAIT } else { PATIENCE };
        self.waiting.front().is_some_and(|(_, since)| now - *since >= patience)
    }

    /// Whether requests are under way and none has ended for a while.
    pub(super) fn hangs(&self, now: Instant) -> bool {
        self.under_way > 0 && self.last_end.is_none_or(|end| now - end >= LONGEST_WAIT)
    }

    /// It keeps others waiting: from now on it is known to be sick.
    pub(super) fn slow(&mut self, now: Instant) -> Option<Found> {
        self.sick_until = Some(now + KNOWN_SICK);
        let limit = i32::try_from(self.under_way).unwrap_or(i32::MAX);
        self.report(Report::Slow { limit }, format!("requests pile up: {limit} are under way"), now)
    }

    /// More comes than its limit lets go: the rest is to come at that pace.
    pub(super) fn over_limit(&mut self, now: Instant) -> Option<Found> {
        const PACED_BY_ITS_LIMIT: i32 = 1_000_000;
        self.report(Report::Slow { limit: PACED_BY_ITS_LIMIT }, "its limit is reached".to_owned(), now)
    }

    /// Whether it was found to be sick a moment ago.
    pub(super) fn is_sick(&self, now: Instant) -> bool {
        self.sick_until.is_some_and(|until| now < until)
    }

    /// Takes out all that waits but so many that wait longest.
    pub(super) fn take_all_but(&mut self, kept: usize) -> impl Iterator<Item = Received<Delivery>> {
        self.waiting.split_off(kept.min(self.waiting.len())).into_iter().map(|(received, _)| received)
    }

    /// Takes out what was sent before it was known to be sick: what was set free since then is to be tried.
    pub(super) fn take_sick(&mut self) -> impl Iterator<Item = Received<Delivery>> {
        let (free, sick): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(received, _)| received.task.released);
        self.waiting = free;
        sick.into_iter().map(|(received, _)| received)
    }

    /// Whether the next request may go now as far as a limit is concerned; that takes its slot.
    pub(super) fn takes_slot(&mut self, now: Instant) -> bool {
        if !self.limited {
            return true;
        }
        while self.slots.front().is_some_and(|slot| *slot + SLOT_LASTS < now) {
            self.slots.pop_front();
        }
        let is_time = self.slots.front().is_some_and(|slot| *slot <= now);
        is_time && self.slots.pop_front().is_some()
    }

    /// How many slots to ask for now.
    pub(super) fn ask_for_slots(&mut self, now: Instant) -> Option<u32> {
        let missing = self.waiting.len().saturating_sub(self.slots.len()).min(SLOTS_AT_A_TIME);
        let may_ask = self.limited && !self.asked && self.ask_from.is_none_or(|from| from <= now);
        if !may_ask || missing == 0 || self.slots.len() >= SLOTS_AT_A_TIME {
            return None;
        }
        self.asked = true;
        u32::try_from(missing).ok()
    }

    pub(super) fn got_slots(&mut self, at: Vec<Instant>, now: Instant) {
        self.asked = false;
        self.ask_from = at.is_empty().then(|| now + ASK_SPACING);
        self.slots.extend(at);
    }

    /// When the next request may go, if that is known.
    pub(super) fn next_slot(&self) -> Option<Instant> {
        let slot = self.slots.front().copied().or(self.ask_from.filter(|_| !self.asked));
        slot.filter(|_| self.limited && !self.waiting.is_empty())
    }

    /// Takes in how it fared in an attempt. Returns what is worth saying.
    pub(super) fn learn(
        &mut self,
        finding: &Finding,
        released: bool,
        breaker_failures: u32,
        now: Instant,
    ) -> Option<Found> {
        self.is_well = !finding.failed;
        if finding.failed {
            self.failures += 1;
        } else {
            self.failures = 0;
        }
        let report = if finding.failed && self.failures >= breaker_failures {
            self.failures = 0;
            self.sick_until = Some(now + KNOWN_SICK);
            Report::Down { released }
        } else if finding.failed && released {
            Report::StillDown
        } else if finding.slow_down {
            self.sick_until = Some(now + TICK);
            Report::Slow { limit: i32::try_from(self.under_way + 1).unwrap_or(i32::MAX) }
        } else if !finding.failed && released {
            self.sick_until = None;
            Report::Recovered
        } else {
            return None;
        };
        self.report(report, finding.error.clone(), now)
    }

    /// The report, unless the same was said a moment ago.
    fn report(&mut self, report: Report, error: String, now: Instant) -> Option<Found> {
        let kind = std::mem::discriminant(&report);
        // Without a name there is nothing to say it of.
        let was_said = self.reported.is_some_and(|(last, at)| last == kind && now - at < REPORT_SPACING);
        if was_said || self.destination.is_unknown() {
            return None;
        }
        self.reported = Some((kind, now));
        Some((self.destination.clone(), report, error))
    }
}
