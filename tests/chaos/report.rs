//! What a run has shown, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::Duration;

use outhook_check::Violation;
use serde_json::json;

use crate::verdict::Use;
use crate::watch::Seen;

/// How long a system took to come back from one fault.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// From what to what.
    pub what: &'static str,
    pub took: Duration,
    pub target: Duration,
}

/// A run in numbers.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    pub faults_lasted: Duration,
    pub injected: BTreeMap<String, usize>,
    /// Webhooks that callers were promised.
    pub accepted: usize,
    /// Of these, those with an ordering key.
    pub with_a_key: usize,
    /// Of these, those that the receiver never took and nobody cancelled.
    pub lost: usize,
    /// Jobs that used up their attempts.
    pub failed: i64,
    /// POSTs of an attempt that was posted before.
    pub attempts_run_twice: usize,
    /// Messages that the broker carried, as far as somebody listened: not while it was away.
    pub messages: usize,
    pub duplicate_messages: usize,
    pub posts: usize,
    /// POSTs that the receiver took although it had taken the webhook before.
    pub duplicate_posts: usize,
    pub unknown_attempts: i64,
    pub timed_out: i64,
    /// Parts of the run without a delivery.
    pub idle_parts: usize,
    pub cancelled: usize,
    /// Cancels that were left open and rolled back, and other things that people outside did.
    pub cancels_rolled_back: usize,
    pub rows_held: usize,
    pub tables_held: usize,
    pub limits: Vec<Use>,
    pub sicknesses: usize,
    /// What stood still, and why.
    pub seen: Seen,
    pub is_drained: bool,
    /// From the end of the last fault to the last delivery.
    pub drained: Duration,
    pub recovery: Vec<Recovery>,
    /// What the checker found; it also insists that each duplicate POST has its unknown or timed-out attempt.
    pub violations: Vec<Violation>,
}

impl Report {
    pub fn is_good(&self) -> bool {
        self.violations.is_empty()
            && self.seen.standstills.is_empty()
            && self.is_drained
            && self.seen.quiet_looks > 0
            && (self.lost, self.attempts_run_twice, self.idle_parts) == (0, 0, 0)
            && self.accepted > 0
            && !self.injected.is_empty()
    }

    fn counts(&self) -> [(&'static str, String); 24] {
        let number = |count: usize| count.to_string();
        [
            ("faults injected", number(self.injected.values().sum())),
            ("webhooks accepted", number(self.accepted)),
            ("  of them with an ordering key", number(self.with_a_key)),
            ("lost", number(self.lost)),
            ("attempts run twice", number(self.attempts_run_twice)),
            ("jobs that failed", self.failed.to_string()),
            ("messages on the wire", number(self.messages)),
            ("  of them duplicates", number(self.duplicate_messages)),
            ("POSTs", number(self.posts)),
            ("  of what the receiver had taken", number(self.duplicate_posts)),
            ("  of them without an unknown or timed-out attempt", number(self.unexplained())),
            ("unknown attempts", self.unknown_attempts.to_string()),
            ("timed-out attempts", self.timed_out.to_string()),
            ("cancelled", number(self.cancelled)),
            ("cancels left open and rolled back", number(self.cancels_rolled_back)),
            ("locks on rows", number(self.rows_held)),
            ("locks on tables", number(self.tables_held)),
            ("limits", number(self.limits.len())),
            ("sicknesses of a destination", number(self.sicknesses)),
            ("looks whether all moves", number(self.seen.looks)),
            ("  of them more than 5 s after any excuse", number(self.seen.quiet_looks)),
            ("stood still for 5 s without a reason", number(self.seen.standstills.len())),
            ("healed to drained", format!("{:.1} s", self.drained.as_secs_f32())),
            ("invariants violated", number(self.violations.len())),
        ]
    }

    /// Jobs with a duplicate POST that nothing explains: the rows of D3.
    fn unexplained(&self) -> usize {
        self.violations.iter().filter(|it| it.sentence.starts_with("D3")).map(|it| it.rows.len()).sum()
    }

    pub fn to_json(&self) -> String {
        let recovery = self.recovery.iter().map(|it| {
            json!({ "what": it.what, "seconds": it.took.as_secs_f64(), "target_seconds": it.target.as_secs_f64() })
        });
        let violations = self.violations.iter().map(|it| json!({ "invariant": it.sentence, "rows": it.rows }));
        let report = json!({
            "seed": self.seed,
            "good": self.is_good(),
            "faults_lasted_seconds": self.faults_lasted.as_secs_f64(),
            "injected": self.injected,
            "accepted": self.accepted,
            "lost": self.lost,
            "failed": self.failed,
            "attempts_run_twice": self.attempts_run_twice,
            "messages": self.messages,
            "duplicate_messages": self.duplicate_messages,
            "posts": self.posts,
            "duplicate_posts": self.duplicate_posts,
            "duplicate_posts_unexplained": self.unexplained(),
            "unknown_attempts": self.unknown_attempts,
            "timed_out_attempts": self.timed_out,
            "idle_parts": self.idle_parts,
            "with_a_key": self.with_a_key,
            "cancelled": self.cancelled,
            "cancels_rolled_back": self.cancels_rolled_back,
            "rows_held": self.rows_held,
            "tables_held": self.tables_held,
            "limits": self.limits.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "sicknesses": self.sicknesses,
            "looks": self.seen.looks,
            "quiet_looks": self.seen.quiet_looks,
            "standstills": self.seen.standstills.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "reasons": self.seen.reasons.keys().collect::<Vec<_>>(),
            "is_drained": self.is_drained,
            "drained_seconds": self.drained.as_secs_f64(),
            "recovery": recovery.collect::<Vec<_>>(),
            "violations": violations.collect::<Vec<_>>(),
        });
        format!("{report:#}\n")
    }
}

impl Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "seed {}, {:.0} s of faults", self.seed, self.faults_lasted.as_secs_f32())?;
        for (fault, count) in &self.injected {
            writeln!(formatter, "    {fault:<48} {count:>8}")?;
        }
        writeln!(formatter)?;
        for (what, count) in self.counts() {
            writeln!(formatter, "{what:<52} {count:>8}")?;
        }
        writeln!(formatter)?;
        self.limits.iter().try_for_each(|limit| writeln!(formatter, "limit of {limit}"))?;
        writeln!(formatter)?;
        writeln!(
            formatter,
            "stood still for 5 s or more, with a reason                  things   longest, whatever else it waited for"
        )?;
        for (reason, (things, longest)) in &self.seen.reasons {
            writeln!(formatter, "    {reason:<52} {things:>8} {:>7.1} s", longest.as_secs_f32())?;
        }
        writeln!(formatter)?;
        for it in &self.recovery {
            let (took, target) = (it.took.as_secs_f32(), it.target.as_secs_f32());
            writeln!(formatter, "{:<52} {took:>6.2} s   target {target:.1} s", it.what)?;
        }
        for standstill in &self.seen.standstills {
            writeln!(formatter, "\n{standstill}")?;
        }
        for violation in &self.violations {
            writeln!(formatter, "\n{violation}")?;
        }
        let verdict = if self.is_good() {
            "nothing was lost, nothing ran twice, nothing stood still"
        } else {
            "BROKEN: see above"
        };
        write!(formatter, "\n{verdict}")
    }
}
