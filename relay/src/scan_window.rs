//! Which of the rows that are due go next, when there are more than one batch takes. Pure: time is a parameter.
//!
//! Taken by due time alone, sixty thousand webhooks for one destination would make the next one for another wait for all
//! of them. So the relay reads ahead, without locking anything, and takes one row of each destination in turn.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use outbox::destination::Destination;
use outbox::due::Position;
use tokio::time::Instant;

/// Rows of one destination that are kept; the others are read again when these are gone.
const PER_DESTINATION: usize = 20_000;

/// Rows that are kept in all: some ten megabytes.
const CAPACITY: usize = 200_000;

/// What is due is gone through anew after this time, or after [`COST`] times what that took if that is more: a row may be
/// committed long after it was due.
const ANEW: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);
const COST: u32 = 30;

/// Once the end was read, it is read again after this many times what that took: most of it is what was read before.
const REST: u32 = 10;
const LONGEST_REST: Duration = Duration::from_millis(100);

/// How late a row's commit may come to be seen by a scan that goes on where the last one ended.
pub(crate) const LATE_COMMIT: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
pub(crate) struct ScanWindow {
    queues: HashMap<Destination, VecDeque<i64>>,
    /// The destinations that have something here, whose turn is next in front.
    turns: VecDeque<Destination>,
    known: HashSet<i64>,
    waiting: usize,
    /// Where the scan has come to.
    position: Option<Position>,
    /// Whether it has come to the end once.
    caught_up: bool,
    /// Whether rows were left out for lack of room.
    left_out: bool,
    began: Option<Instant>,
    /// What the scan has taken so far.
    took: Duration,
    /// The end was read just now: not before this moment again.
    rest_until: Option<Instant>,
}

impl ScanWindow {
    /// Whether rows are here to be taken.
    pub(crate) const fn has_rows(&self) -> bool {
        self.waiting > 0
    }

    /// Whether rows are to be taken from here.
    pub(crate) const fn is_open(&self) -> bool {
        self.began.is_some()
    }

    /// Begins to read ahead, from the beginning.
    pub(crate) fn open(&mut self, now: Instant) {
        *self = Self { began: Some(now), ..Self::default() };
    }

    /// Begins anew if it is time, and ends when nothing is left.
    pub(crate) fn renew(&mut self, now: Instant) {
        let Some(began) = self.began else { return };
        let pause = (self.took * COST).clamp(ANEW, LONGEST);
        if self.waiting == 0 && self.caught_up && !self.left_out {
            *self = Self::default();
        } else if self.caught_up && (now - began >= pause || self.waiting == 0) {
            self.open(now);
        }
    }

    /// Whether to read on: there is room.
    pub(crate) fn wants_page(&self, now: Instant) -> bool {
        self.is_open() && self.waiting < CAPACITY && self.rest_until.is_none_or(|until| until <= now)
    }

    /// Where to read on; `None` for the beginning.
    pub(crate) fn position(&self) -> Option<Position> {
        match self.position {
            Some((due_at, _)) if self.caught_up => Some((due_at - LATE_COMMIT, i64::MIN)),
            position => position,
        }
    }

    /// Takes in what was read just now; fewer rows than `limit` are the last ones.
    pub(crate) fn read(&mut self, page: Vec<(Position, Destination)>, limit: usize, now: Instant, took: Duration) {
        self.took += if self.caught_up { Duration::ZERO } else { took };
        self.caught_up |= page.len() < limit;
        self.rest_until = self.caught_up.then(|| now + (took * REST).min(LONGEST_REST));
        self.position = page.last().map(|(position, _)| *position).or(self.position);
        self.add(page);
    }

    /// Takes in rows that were found otherwise.
    pub(crate) fn add(&mut self, rows: Vec<(Position, Destination)>) {
        for ((_, id), destination) in rows {
            self.push(id, destination);
        }
    }

    fn push(&mut self, id: i64, destination: Destination) {
        if self.known.contains(&id) {
            return;
        }
        let waiting = self.queues.get(&destination).map_or(0, VecDeque::len);
        if waiting >= PER_DESTINATION || self.waiting >= CAPACITY {
            self.left_out = true;
            return;
        }
        if waiting == 0 {
            self.turns.push_back(destination.clone());
        }
        self.queues.entry(destination).or_default().push_back(id);
        self.known.insert(id);
        self.waiting += 1;
    }

    /// Takes out up to `limit` rows, one of each destination in turn, each one's oldest first.
    pub(crate) fn take(&mut self, limit: usize) -> Vec<i64> {
        let mut taken = Vec::with_capacity(limit.min(self.waiting));
        while taken.len() < limit
            && let Some(destination) = self.turns.pop_front()
        {
            let queue = self.queues.get_mut(&destination).expect("it has a turn because it has a queue");
            taken.extend(queue.pop_front());
            if queue.is_empty() {
                self.queues.remove(&destination);
            } else {
                self.turns.push_back(destination);
            }
        }
        self.waiting -= taken.len();
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;

    fn page(rows: impl IntoIterator<Item = (i64, &'static str)>) -> Vec<(Position, Destination)> {
        let moment = |id: i64| SystemTime::UNIX_EPOCH + Duration::from_millis(id.unsigned_abs());
        rows.into_iter().map(|(id, destination)| ((moment(id), id), destination.to_owned().into())).collect()
    }

    #[test]
    fn a_crowd_for_one_destination_lets_another_pass() {
        let mut window = ScanWindow::default();
        window.open(Instant::now());
        window.read(page((0..1_000).map(|id| (id, "crowd"))), 1_000, Instant::now(), Duration::ZERO);
        window.read(page([(1_000, "other")]), 1_000, Instant::now(), Duration::ZERO);
        assert_eq!(window.take(3), [0, 1_000, 1]);
    }

    #[test]
    fn what_is_read_twice_is_taken_once() {
        let mut window = ScanWindow::default();
        window.open(Instant::now());
        for _ in 0..2 {
            window.read(page([(1, "a"), (2, "a")]), 10, Instant::now(), Duration::ZERO);
        }
        assert_eq!(window.take(10), [1, 2]);
        window.read(page([(2, "a"), (3, "a")]), 10, Instant::now(), Duration::ZERO);
        assert_eq!(window.take(10), [3], "nor again after it was taken");
    }

    #[test]
    fn it_closes_when_all_is_taken_and_begins_anew_when_something_was_left_out() {
        let now = Instant::now();
        let mut window = ScanWindow::default();
        window.open(now);
        window.read(page([(1, "a")]), 10, Instant::now(), Duration::ZERO);
        window.renew(now);
        assert!(window.is_open());
        window.take(1);
        window.renew(now);
        assert!(!window.is_open());

        window.open(now);
        let crowd = i64::try_from(PER_DESTINATION).expect("it is small") + 1;
        window.read(page((0..crowd).map(|id| (id, "a"))), usize::MAX, Instant::now(), Duration::ZERO);
        assert_eq!(window.take(usize::MAX).len(), PER_DESTINATION);
        window.renew(now);
        assert!(window.wants_page(now) && window.position().is_none(), "from the beginning");
    }

    #[test]
    fn it_goes_on_after_the_last_row_and_overlaps_once_it_has_caught_up() {
        let mut window = ScanWindow::default();
        window.open(Instant::now());
        window.read(page([(700, "a"), (701, "a")]), 2, Instant::now(), Duration::ZERO);
        let last = SystemTime::UNIX_EPOCH + Duration::from_millis(701);
        assert_eq!(window.position(), Some((last, 701)));
        window.read(Vec::new(), 2, Instant::now(), Duration::ZERO);
        assert_eq!(window.position(), Some((last - LATE_COMMIT, i64::MIN)));
    }

    #[test]
    fn the_end_is_not_read_again_and_again() {
        let (now, took) = (Instant::now(), Duration::from_millis(7));
        let mut window = ScanWindow::default();
        window.open(now);
        window.read(page([(1, "a"), (2, "a")]), 2, now, took);
        assert!(window.wants_page(now), "there may be more");
        window.read(page([(3, "a")]), 2, now, took);
        assert!(!window.wants_page(now + took) && window.wants_page(now + took * REST));
    }

    proptest! {
        /// Whatever was read, in whatever pages, each row is taken once, in its destination's order, and no destination
        /// gets a second row before each of the others had one.
        #[test]
        fn each_row_is_taken_once_and_in_turn(destinations in prop::collection::vec(0_usize..5, 1..200), batch in 1_usize..50) {
            const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
            let mut window = ScanWindow::default();
            window.open(Instant::now());
            let rows: Vec<(i64, &str)> = (0_i64..).zip(destinations.iter().map(|it| NAMES[*it])).collect();
            for some in rows.chunks(7) {
                window.read(page(some.iter().copied()), 7, Instant::now(), Duration::ZERO);
            }
            let mut taken = Vec::new();
            loop {
                let some = window.take(batch);
                if some.is_empty() { break }
                taken.extend(some);
            }
            let name = |id: &i64| rows[usize::try_from(*id).expect("a place")].1;
            for destination in NAMES {
                let own: Vec<i64> = taken.iter().copied().filter(|id| name(id) == destination).collect();
                let all: Vec<i64> = rows.iter().filter(|row| row.1 == destination).map(|row| row.0).collect();
                prop_assert_eq!(own, all);
            }
            let kinds = destinations.iter().collect::<HashSet<_>>().len();
            let first: HashSet<&str> = taken.iter().take(kinds).map(name).collect();
            prop_assert_eq!(first.len(), kinds);
        }
    }
}
