//! Which messages are started, which wait, and which are held back. Pure: time is a parameter.
//!
//! No destination may keep the others waiting. One may have as many requests under way as there are free
//! slots, so that one alone gets half of them, two a third each, and some are always left for the next
//! ("Dynamic queue length thresholds for shared-memory packet switches", Choudhury and Hahne, 1998).
//! What it may not start yet waits here for a moment, since most are quick; what waits longer is held in
//! Postgres, where it is in nobody's way.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use outbox::message::Message;
use tokio::time::Instant;

/// When there is no more room for what waits, that of a destination which takes its share of the slots makes way
/// for others if it has waited this long, and in this time not one of the destination's requests has ended: it
/// hangs.
const PATIENCE: Duration = Duration::from_millis(200);

/// What waits this long makes way in any case: it is slow.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// For so long after a destination was found sick its messages are held without a try. Those that the relay
/// published before it knew come within this time.
const KNOWN_SICK: Duration = Duration::from_secs(5);

/// Between two reports of one kind on a destination.
const REPORT_SPACING: Duration = Duration::from_secs(1);

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
    /// So many failures in a row.
    Down { error: String },
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

/// What is here of one destination.
struct Lane<Delivery> {
    destination: Arc<str>,
    /// Requests that were started and have not ended.
    under_way: usize,
    waiting: VecDeque<(Received<Delivery>, Instant)>,
    last_end: Option<Instant>,
    failures: u32,
    sick_until: Option<Instant>,
    reported: Option<(std::mem::Discriminant<Report>, Instant)>,
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

    /// Takes out what must make way: messages of destinations that are known to be sick, and of those that
    /// take their share of the slots and have let others wait for too long. Also says what was found out.
    pub(crate) fn hold(&mut self, now: Instant) -> Held<Delivery> {
        let (mut held, mut reports) = (Vec::new(), Vec::new());
        let is_full = !self.has_room();
        let share = (self.bounds.slots / 8).max(1);
        self.turns.retain(|destination| {
            let lane = self.lanes.get_mut(destination).expect("what waits has its lane");
            let is_late = is_full && lane.keeps_waiting(now);
            // Without a name there is nothing to hold: messages of an older build.
            if is_late && lane.under_way >= share.min(self.bounds.per_destination) && !destination.is_empty() {
                lane.sick_until = Some(now + KNOWN_SICK);
                let limit = i32::try_from(lane.under_way).unwrap_or(i32::MAX);
                let error = format!("requests pile up: {limit} are under way");
                let report = Report::Slow { pause: outbox::destination::TICK, limit, error };
                reports.extend(lane.report(report, now).map(|report| (Arc::clone(destination), report)));
                held.extend(lane.waiting.drain(..));
            } else if lane.sick_until.is_some_and(|until| now < until) {
                // Those that were set free since then are to be tried.
                let (free, sick) = lane.waiting.drain(..).partition(|(received, _)| received.message.released);
                lane.waiting = free;
                held.extend::<VecDeque<_>>(sick);
            }
            !lane.waiting.is_empty()
        });
        self.waiting -= held.len();
        Held { messages: held.into_iter().map(|(received, _)| received).collect(), reports }
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
        let is_idle = lane.under_way == 0 && lane.waiting.is_empty();
        let is_forgettable = is_idle
            && lane.failures == 0
            && lane.sick_until.is_none_or(|until| until <= now)
            && lane.reported.is_none_or(|(_, at)| now - at >= REPORT_SPACING);
        if is_forgettable {
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
        let waiting = self.lanes.values_mut().flat_map(|lane| lane.waiting.drain(..)).map(|(received, _)| received);
        let waiting = waiting.collect();
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

impl<Delivery> Lane<Delivery> {
    const fn new(destination: Arc<str>) -> Self {
        Self {
            destination,
            under_way: 0,
            waiting: VecDeque::new(),
            last_end: None,
            failures: 0,
            sick_until: None,
            reported: None,
        }
    }

    /// Whether what waits here has waited for too long.
    fn keeps_waiting(&self, now: Instant) -> bool {
        let hangs = self.last_end.is_none_or(|end| now - end >= PATIENCE);
        let patience = if hangs { PATIENCE } else { LONGEST_WAIT };
        self.waiting.front().is_some_and(|(_, since)| now - *since >= patience)
    }

    fn learn(&mut self, finding: &Finding, released: bool, breaker_failures: u32, now: Instant) -> Option<Report> {
        let error = finding.error.clone();
        if finding.failed {
            self.failures += 1;
        } else {
            self.failures = 0;
        }
        let report = if finding.failed && self.failures >= breaker_failures {
            self.failures = 0;
            self.sick_until = Some(now + KNOWN_SICK);
            Report::Down { error }
        } else if finding.failed && released {
            Report::StillDown { error }
        } else if let Some(pause) = finding.slow_down {
            self.sick_until = Some(now + pause.clamp(outbox::destination::TICK, KNOWN_SICK));
            let limit = i32::try_from(self.under_way + 1).unwrap_or(i32::MAX);
            Report::Slow { pause: pause.max(outbox::destination::TICK), limit, error }
        } else if !finding.failed && released {
            self.sick_until = None;
            Report::Recovered
        } else {
            return None;
        };
        self.report(report, now)
    }

    /// The report, unless the same was said a moment ago.
    fn report(&mut self, report: Report, now: Instant) -> Option<Report> {
        let kind = std::mem::discriminant(&report);
        if self.reported.is_some_and(|(last, at)| last == kind && now - at < REPORT_SPACING) {
            return None;
        }
        self.reported = Some((kind, now));
        Some(report)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const BOUNDS: Bounds = Bounds { slots: 8, per_destination: 100, breaker_failures: 3 };

    fn intake() -> Intake<()> {
        Intake::new(BOUNDS)
    }

    fn received(destination: &str, released: bool) -> Received<()> {
        let message = Message::new(Uuid::nil(), 0, 1, None).to(destination.to_owned(), released);
        Received { message, delivery: () }
    }

    fn push(intake: &mut Intake<()>, destination: &str, count: usize, now: Instant) {
        for _ in 0..count {
            intake.push(received(destination, false), now);
        }
    }

    fn start(intake: &mut Intake<()>) -> Vec<String> {
        intake.start(100).into_iter().map(|it| it.message.destination).collect()
    }

    fn finish(
        intake: &mut Intake<()>,
        destination: &str,
        released: bool,
        finding: Finding,
        now: Instant,
    ) -> Option<Report> {
        let answered = Answered { destination: destination.into(), released, finding: Some(finding) };
        let report = intake.note(Progress::Answered(answered), now);
        assert_eq!(intake.note(Progress::Recorded, now), None);
        report.map(|(_, report)| report)
    }

    fn well() -> Finding {
        Finding { failed: false, slow_down: None, error: String::new() }
    }

    fn failed() -> Finding {
        Finding { failed: true, slow_down: None, error: "no answer".to_owned() }
    }

    #[test]
    fn one_destination_alone_gets_half_of_the_slots_and_the_next_ones_get_theirs() {
        let (mut intake, now) = (intake(), Instant::now());
        push(&mut intake, "a", 8, now);
        assert!(!intake.has_room());
        assert_eq!(start(&mut intake), ["a"; 4]);
        push(&mut intake, "b", 4, now);
        assert_eq!(start(&mut intake), ["b"; 2]);
        push(&mut intake, "c", 4, now);
        assert_eq!(start(&mut intake), ["c"]);
        push(&mut intake, "d", 4, now);
        assert_eq!(start(&mut intake), ["d"], "there is always one left");
        assert_eq!(start(&mut intake), [""; 0]);
        assert_eq!(finish(&mut intake, "a", false, well(), now), None);
        assert_eq!(finish(&mut intake, "a", false, well(), now), None);
        assert_eq!(start(&mut intake).len(), 1, "two are free; those that have two or more must leave one");
    }

    #[test]
    fn destinations_take_turns() {
        let (mut intake, now) = (intake(), Instant::now());
        push(&mut intake, "a", 3, now);
        push(&mut intake, "b", 3, now);
        assert_eq!(start(&mut intake), ["a", "b", "a", "b", "a", "b"]);
    }

    #[test]
    fn a_limit_of_its_own_counts() {
        let mut intake = Intake::new(Bounds { per_destination: 1, ..BOUNDS });
        push(&mut intake, "a", 3, Instant::now());
        assert_eq!(start(&mut intake), ["a"]);
        assert_eq!(intake.waiting(), 2);
    }

    #[test]
    fn what_waits_too_long_for_its_own_kind_makes_way() {
        let (mut intake, now) = (intake(), Instant::now());
        push(&mut intake, "a", 4, now);
        push(&mut intake, "b", 1, now);
        assert_eq!(start(&mut intake).len(), 5);
        push(&mut intake, "a", 7, now);
        assert_eq!(intake.hold(now + PATIENCE * 10).messages.len(), 0, "there is still room for others");
        push(&mut intake, "a", 1, now);
        assert_eq!(intake.hold(now).messages.len(), 0);
        let later = now + PATIENCE;
        let held = intake.hold(later);
        assert_eq!((held.messages.len(), held.reports.len()), (8, 1));
        assert!(matches!(&held.reports[0], (_, Report::Slow { limit: 4, .. })));
        // From now on, without a try; but what was set free is tried.
        push(&mut intake, "a", 1, later);
        intake.push(received("a", true), later);
        assert_eq!(intake.hold(later).messages.len(), 1);
        assert_eq!(intake.waiting(), 1);
    }

    #[test]
    fn a_destination_that_answers_is_waited_for_a_little_longer() {
        let (mut intake, now) = (intake(), Instant::now());
        push(&mut intake, "a", 4, now);
        assert_eq!(start(&mut intake).len(), 4);
        push(&mut intake, "a", 9, now);
        finish(&mut intake, "a", false, well(), now + PATIENCE);
        assert_eq!(start(&mut intake).len(), 1);
        assert_eq!(intake.hold(now + PATIENCE).messages.len(), 0);
        assert_eq!(intake.hold(now + LONGEST_WAIT).messages.len(), 8);
    }

    #[test]
    fn a_slot_is_free_when_its_attempt_is_recorded() {
        let (mut intake, now) = (intake(), Instant::now());
        push(&mut intake, "a", 8, now);
        assert_eq!(start(&mut intake).len(), 4);
        for _ in 0..4 {
            let answered = Answered { destination: "a".into(), released: false, finding: None };
            assert_eq!(intake.note(Progress::Answered(answered), now), None);
        }
        assert_eq!(start(&mut intake).len(), 2, "two of the four that are left");
        push(&mut intake, "a", 6, now);
        let later = now + LONGEST_WAIT;
        for _ in 0..2 {
            let answered = Answered { destination: "a".into(), released: false, finding: None };
            intake.note(Progress::Answered(answered), now);
        }
        assert!(intake.hold(later).messages.is_empty(), "the database is slow, and no destination's fault");
    }

    #[test]
    fn a_worker_that_is_full_of_many_blames_none() {
        let (mut intake, now) = (Intake::new(Bounds { slots: 32, ..BOUNDS }), Instant::now());
        for destination in 0..40 {
            push(&mut intake, &destination.to_string(), 1, now);
        }
        assert_eq!(start(&mut intake).len(), 32);
        assert!(intake.hold(now + PATIENCE * 10).messages.is_empty());
    }

    #[test]
    fn failures_in_a_row_are_reported_and_a_success_starts_anew() {
        let (mut intake, now) = (intake(), Instant::now());
        let mut end = |finding: Finding, released: bool| {
            push(&mut intake, "a", 1, now);
            intake.start(1);
            finish(&mut intake, "a", released, finding, now)
        };
        assert_eq!(end(failed(), false), None);
        assert_eq!(end(failed(), false), None);
        assert_eq!(end(well(), false), None);
        assert_eq!(end(failed(), false), None);
        assert_eq!(end(failed(), true), Some(Report::StillDown { error: "no answer".to_owned() }));
        assert_eq!(end(failed(), false), Some(Report::Down { error: "no answer".to_owned() }));
        assert_eq!(end(well(), true), Some(Report::Recovered));
        assert_eq!(end(well(), true), None, "the same was said a moment ago");
    }

    #[test]
    fn a_receiver_that_asks_for_a_pause_gets_it() {
        let (mut intake, now) = (intake(), Instant::now());
        push(&mut intake, "a", 2, now);
        intake.start(2);
        let asked = Finding { failed: false, slow_down: Some(Duration::from_secs(30)), error: "HTTP 429".to_owned() };
        let report = finish(&mut intake, "a", false, asked, now);
        let error = "HTTP 429".to_owned();
        assert_eq!(report, Some(Report::Slow { pause: Duration::from_secs(30), limit: 2, error }));
        push(&mut intake, "a", 1, now);
        assert_eq!(intake.hold(now).messages.len(), 1);
    }

    #[test]
    fn nothing_is_remembered_of_a_destination_that_is_well() {
        let (mut intake, now) = (intake(), Instant::now());
        push(&mut intake, "a", 1, now);
        intake.start(1);
        intake.give_back("a", now);
        assert!(intake.lanes.is_empty());
        push(&mut intake, "a", 1, now);
        assert_eq!(intake.clear().len(), 1);
        assert!(intake.lanes.is_empty() && intake.turns.is_empty() && intake.waiting() == 0);
    }
}
