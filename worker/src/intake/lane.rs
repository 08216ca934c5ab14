//! What is here of one destination, and what it has shown of itself.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use outbox::destination::TICK;
use tokio::time::Instant;

use super::{Finding, Received, Report};

/// When there is no more room for what waits, that of a destination which takes its share of the slots makes way
/// for others if it has waited this long, and in this time not one of the destination's requests has ended: it
/// hangs.
pub(super) const PATIENCE: Duration = Duration::from_millis(200);

/// What waits this long makes way in any case: it is slow.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// For so long after a destination was found sick its messages are held without a try. Those that the relay
/// published before it knew come within this time.
const KNOWN_SICK: Duration = Duration::from_secs(5);

/// Between two reports of one kind on a destination.
const REPORT_SPACING: Duration = Duration::from_secs(1);

/// What is here of one destination.
pub(super) struct Lane<Delivery> {
    pub destination: Arc<str>,
    /// Requests that were started and have not ended.
    pub under_way: usize,
    pub waiting: VecDeque<(Received<Delivery>, Instant)>,
    pub last_end: Option<Instant>,
    pub failures: u32,
    sick_until: Option<Instant>,
    reported: Option<(std::mem::Discriminant<Report>, Instant)>,
}

impl<Delivery> Lane<Delivery> {
    pub(super) const fn new(destination: Arc<str>) -> Self {
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
    pub(super) fn keeps_waiting(&self, now: Instant) -> bool {
        let hangs = self.last_end.is_none_or(|end| now - end >= PATIENCE);
        let patience = if hangs { PATIENCE } else { LONGEST_WAIT };
        self.waiting.front().is_some_and(|(_, since)| now - *since >= patience)
    }

    /// It keeps others waiting: from now on it is known to be sick.
    pub(super) fn slow(&mut self, now: Instant) -> Option<Report> {
        self.sick_until = Some(now + KNOWN_SICK);
        let limit = i32::try_from(self.under_way).unwrap_or(i32::MAX);
        let error = format!("requests pile up: {limit} are under way");
        self.report(Report::Slow { pause: TICK, limit, error }, now)
    }

    /// Whether it was found to be sick a moment ago.
    pub(super) fn is_sick(&self, now: Instant) -> bool {
        self.sick_until.is_some_and(|until| now < until)
    }

    /// Whether nothing is here of it that would be missed.
    pub(super) fn is_forgettable(&self, now: Instant) -> bool {
        let has_just_reported = self.reported.is_some_and(|(_, at)| now - at < REPORT_SPACING);
        let is_idle = self.under_way == 0 && self.waiting.is_empty();
        is_idle && self.failures == 0 && !self.is_sick(now) && !has_just_reported
    }

    /// Takes out all that waits.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Received<Delivery>> {
        std::mem::take(&mut self.waiting).into_iter().map(|(received, _)| received)
    }

    /// Takes out what was sent before it was known to be sick: what was set free since then is to be tried.
    pub(super) fn take_sick(&mut self) -> impl Iterator<Item = Received<Delivery>> {
        let (free, sick): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(received, _)| received.message.released);
        self.waiting = free;
        sick.into_iter().map(|(received, _)| received)
    }

    /// Takes in how it fared in an attempt. Returns what is worth saying.
    pub(super) fn learn(
        &mut self,
        finding: &Finding,
        released: bool,
        breaker_failures: u32,
        now: Instant,
    ) -> Option<Report> {
        let error = finding.error.clone();
        if finding.failed {
            self.failures += 1;
        } else {
            self.failures = 0;
        }
        let report = if finding.failed && self.failures >= breaker_failures {
            self.failures = 0;
            self.sick_until = Some(now + KNOWN_SICK);
            Report::Down { error, released }
        } else if finding.failed && released {
            Report::StillDown { error }
        } else if let Some(pause) = finding.slow_down {
            self.sick_until = Some(now + pause.clamp(TICK, KNOWN_SICK));
            let limit = i32::try_from(self.under_way + 1).unwrap_or(i32::MAX);
            Report::Slow { pause: pause.max(TICK), limit, error }
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
