//! How many requests may be under way to destinations that are not known to be well.
//!
//! Six hundred receivers that never answer, one webhook each, take every slot for their time-outs if they may: none of
//! them has done anything wrong before. So those that never succeeded, or failed last, have a part of the slots together,
//! and as long as many of them hang, only a few new ones are let in at a time. Then a slot is free for the first
//! webhook of somebody who is well, and for those who are known to be.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// A request that takes longer hangs, as far as this is concerned.
const HANGS_AFTER: Duration = Duration::from_millis(300);

/// What a stranger's request gives back at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ticket(u64);

#[derive(Debug)]
pub(super) struct Strangers {
    slots: usize,
    under_way: HashMap<Ticket, Instant>,
    next: u64,
    /// Of those under way, as of the last look.
    hanging: usize,
}

impl Strangers {
    pub(super) fn new(slots: usize) -> Self {
        Self { slots, under_way: HashMap::new(), next: 0, hanging: 0 }
    }

    /// Counts those that hang.
    pub(super) fn look(&mut self, now: Instant) {
        self.hanging = self.under_way.values().filter(|since| now - **since >= HANGS_AFTER).count();
    }

    /// Whether another one may enter. While hardly any hang, half of the slots are there for strangers. When many do, a
    /// quarter more is kept for newcomers, of whom nothing is under way and whose webhook was not put off before, and few
    /// are let in at a time.
    pub(super) fn have_room(&self, is_newcomer: bool) -> bool {
        let under_way = self.under_way.len();
        if self.hanging * 8 < self.slots {
            return under_way < (self.slots / 2).max(1);
        }
        let together = if is_newcomer { self.slots * 3 / 4 } else { self.slots / 2 };
        under_way < together.max(1) && under_way - self.hanging < (self.slots / 16).max(1)
    }

    /// Whether those that wait are better put off than kept in line, in which somebody new would stand behind them.
    pub(super) fn are_many(&self) -> bool {
        self.hanging * 8 >= self.slots || self.under_way.len() * 2 >= self.slots
    }

    pub(super) fn enter(&mut self, now: Instant) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.under_way.insert(ticket, now);
        ticket
    }

    pub(super) fn leave(&mut self, ticket: Ticket) {
        self.under_way.remove(&ticket);
    }

    #[cfg(test)]
    pub(super) fn oldest(&self) -> Ticket {
        *self.under_way.keys().min_by_key(|ticket| ticket.0).expect("some are under way")
    }
}
