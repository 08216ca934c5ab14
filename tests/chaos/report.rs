//! What a run has shown, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::Duration;

use outhook_check::Violation;
use serde_json::json;

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
    /// Of these, those that the receiver never took.
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
    /// From the end of the last fault to the last delivery.
    pub drained: Duration,
    pub recovery: Vec<Recovery>,
    /// What the checker found; it also insists that each duplicate POST has its unknown or timed-out attempt.
    pub violations: Vec<Violation>,
}

impl Report {
    pub fn is_good(&self) -> bool {
        self.violations.is_empty()
            && (self.lost, self.attempts_run_twice, self.idle_parts) == (0, 0, 0)
            && self.accepted > 0
            && !self.injected.is_empty()
    }

    fn counts(&self) -> [(&'static str, String); 14] {
        let number = |count: usize| count.to_string();
        [
            ("faults injected", number(self.injected.values().sum())),
            ("webhooks accepted", number(self.accepted)),
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
        for it in &self.recovery {
            let (took, target) = (it.took.as_secs_f32(), it.target.as_secs_f32());
            writeln!(formatter, "{:<52} {took:>6.2} s   target {target:.1} s", it.what)?;
        }
        for violation in &self.violations {
            writeln!(formatter, "\n{violation}")?;
        }
        let verdict = if self.is_good() { "nothing was lost, nothing ran twice" } else { "BROKEN: see above" };
        write!(formatter, "\n{verdict}")
    }
}
