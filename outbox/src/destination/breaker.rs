//! The states of a destination and what moves it from one to the next. Pure: time and counts are parameters.
//!
//! ```text
//!            so many failures in a row                    cool-down over
//!  closed ──────────────────────────────▶ open ──────────────────────────────▶ half_open
//!    │ ▲                                   ▲                                     │   │
//!    │ │ nothing held, well for 2 s        └────────── the probe fails ──────────┘   │
//!    ▼ │                                                                             │
//!  metered ◀──────────────────────── the probe succeeds ─────────────────────────────┘
//! ```
//! `closed` becomes `metered` when requests pile up or a receiver asks to slow down. Only `closed` lets rows of the outbox
//! be published as they become due. Otherwise they are held, and set free: one as a probe, or so many a second, twice
//! as many each second while all goes well.

use std::time::Duration;

use super::TICK;

/// For so long nothing must have asked to slow down before a metered destination is closed, if nothing is held for it.
pub const QUIET: Duration = Duration::from_secs(2);

/// A probe without a verdict after so long came to nothing, or to a time-out to come: another one is sent.
pub const PROBE_TIME: Duration = Duration::from_secs(5);

/// Openings that are longer ago do not lengthen the next cool-down.
const MEMORY: Duration = Duration::from_hours(1);

/// A second's worth to begin with, after a probe has succeeded.
const FIRST_LIMIT: i32 = 16;

/// What many workers say at once about slowing down is one thing.
const SLOW_SPACING: Duration = Duration::from_secs(1);

/// Where a breaker stands. The text in the database is [`State::as_str`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Webhooks go as they come.
    Closed,
    /// So many a second, oldest first.
    Metered,
    /// None.
    Open,
    /// One, to see.
    HalfOpen,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Closed, Self::Metered, Self::Open, Self::HalfOpen];

    /// The text in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Metered => "metered",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }

    /// The state of a text in the database.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// How long a breaker stays open.
#[derive(Clone, Copy, Debug)]
pub struct CoolDown {
    /// The first time; doubled each time it opens without a success in between.
    pub base: Duration,
    /// At the most.
    pub max: Duration,
}

impl CoolDown {
    fn after(self, openings: i32) -> Duration {
        let doublings = openings.saturating_sub(1).clamp(0, 30).unsigned_abs();
        self.base.saturating_mul(1 << doublings).min(self.max)
    }
}

/// A destination's breaker, as its row has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Where it stands.
    pub state: State,
    /// Times it has opened without a success since.
    pub openings: i32,
    /// Webhooks to set free in a second while metered.
    pub release_limit: i32,
    /// How long ago its state changed.
    pub changed_ago: Duration,
    /// How long ago it was last found not to keep up.
    pub slowed_ago: Option<Duration>,
}

impl Default for Breaker {
    /// That of a destination without a row: it is well.
    fn default() -> Self {
        let (openings, release_limit, changed_ago) = (0, FIRST_LIMIT, Duration::MAX);
        Self { state: State::Closed, openings, release_limit, changed_ago, slowed_ago: None }
    }
}

/// What a worker has found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// So many failures in a row.
    Down {
        /// Whether the last failure was of what was set free.
        released: bool,
    },
    /// What was set free has failed.
    StillDown,
    /// It does not keep up, or asks to slow down.
    Slow {
        /// Webhooks a second that it may keep up with.
        limit: i32,
    },
    /// What was set free has succeeded.
    Recovered,
}

/// What a breaker becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The breaker from now on.
    pub breaker: Breaker,
    /// When a relay is to look at it next.
    pub look_in: Duration,
}

impl Breaker {
    fn moved_to(&self, state: State) -> Self {
        Self { state, changed_ago: Duration::ZERO, ..self.clone() }
    }

    /// What a finding makes of it; `None` if nothing.
    #[must_use]
    pub fn found(&self, finding: Finding, cool_down: CoolDown) -> Option<Change> {
        match (finding, self.state) {
            (Finding::Down { .. }, State::Closed | State::Metered) => {
                let before = if self.changed_ago < MEMORY { self.openings } else { 0 };
                Some(self.opened(before + 1, cool_down))
            }
            // What was sent before it opened may fail after that, and was counted. The probe's failure is news.
            (Finding::Down { released: true } | Finding::StillDown, State::HalfOpen) => {
                Some(self.opened(self.openings + 1, cool_down))
            }
            (Finding::Slow { limit }, State::Closed) => {
                let breaker = Self { release_limit: limit.max(1), slowed_ago: Some(Duration::ZERO), ..self.clone() };
                Some(Change { breaker: breaker.moved_to(State::Metered), look_in: TICK })
            }
            (Finding::Slow { .. }, State::Metered) if self.slowed_ago.is_none_or(|ago| ago >= SLOW_SPACING) => {
                let release_limit = (self.release_limit / 2).max(1);
                let breaker = Self { release_limit, slowed_ago: Some(Duration::ZERO), ..self.clone() };
                Some(Change { breaker, look_in: TICK })
            }
            (Finding::Recovered, State::Open | State::HalfOpen) => Some(self.recovered()),
            _ => None,
        }
    }

    fn opened(&self, openings: i32, cool_down: CoolDown) -> Change {
        let breaker = Self { openings, ..self.moved_to(State::Open) };
        Change { breaker, look_in: cool_down.after(openings) }
    }

    fn recovered(&self) -> Change {
        let breaker =
            Self { openings: 0, release_limit: FIRST_LIMIT, slowed_ago: None, ..self.moved_to(State::Metered) };
        Change { breaker, look_in: Duration::ZERO }
    }

    /// What to set free now that it is looked at; `rate_limit` is its owner's, a second.
    #[must_use]
    pub fn plan(&self, rate_limit: Option<i32>) -> Plan {
        match self.state {
            // Another row each time, from both ends of those with the fewest attempts: ten that nobody can digest
            // must not keep it shut for those who come after them.
            State::Open | State::HalfOpen => Plan { rows: 1, newest: self.openings % 2 == 0, tick: PROBE_TIME },
            State::Closed | State::Metered => {
                let allowed = rate_limit.map_or(self.release_limit, |limit| limit.min(self.release_limit)).max(1);
                let rows = ((f64::from(allowed) * TICK.as_secs_f64()).floor()).max(1.0);
                // Of the length that makes whole rows of what is allowed a second.
                let tick = Duration::from_secs_f64(rows / f64::from(allowed));
                #[allow(clippy::cast_possible_truncation, reason = "a quarter of an i32")]
                Plan { rows: rows as i32, newest: false, tick }
            }
        }
    }

    /// What it becomes after a plan was carried out; `most` bounds what is set free in a second.
    #[must_use]
    pub fn looked(&self, plan: Plan, freed: Freed, most: i32) -> Change {
        match self.state {
            State::Open | State::HalfOpen if freed.rows > 0 => {
                Change { breaker: self.moved_to(State::HalfOpen), look_in: PROBE_TIME }
            }
            // Somebody holds all that could be tried.
            State::Open | State::HalfOpen if freed.are_more_held => {
                Change { breaker: self.clone(), look_in: Duration::from_secs(1) }
            }
            // Nothing can tell whether it is well: whatever comes next does.
            State::Open | State::HalfOpen => self.recovered(),
            State::Closed | State::Metered if freed.rows < plan.rows => {
                let is_quiet = self.slowed_ago.is_none_or(|ago| ago >= QUIET);
                let breaker =
                    if is_quiet && !freed.are_more_held { self.moved_to(State::Closed) } else { self.clone() };
                Change { breaker, look_in: plan.tick }
            }
            State::Closed | State::Metered => {
                let keeps_up = self.slowed_ago.is_none_or(|ago| ago >= SLOW_SPACING);
                let release_limit = if keeps_up { self.grown(plan.tick, most) } else { self.release_limit };
                Change { breaker: Self { release_limit, ..self.clone() }, look_in: plan.tick }
            }
        }
    }

    /// Twice as many after a second.
    fn grown(&self, tick: Duration, most: i32) -> i32 {
        let grown = f64::from(self.release_limit) * tick.as_secs_f64().exp2();
        #[allow(clippy::cast_possible_truncation, reason = "a float's cast saturates")]
        (grown.ceil() as i32).min(most.max(self.release_limit))
    }
}

/// What to set free of what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// So many rows.
    pub rows: i32,
    /// The newest of those with the fewest attempts, instead of the oldest.
    pub newest: bool,
    /// How long that lasts.
    pub tick: Duration,
}

impl Plan {
    /// The same pace with no more rows at once.
    #[must_use]
    pub fn at_most(self, rows: i32) -> Self {
        let fewer = self.rows.min(rows.max(1));
        Self { rows: fewer, tick: self.tick.mul_f64(f64::from(fewer) / f64::from(self.rows.max(1))), ..self }
    }
}

/// What became of a [`Plan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freed {
    /// Rows that were set free.
    pub rows: i32,
    /// Whether others are held.
    pub are_more_held: bool,
}

#[cfg(test)]
mod tests;
