use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use uuid::Uuid;

use outbox::destination::breaker::Finding as Report;

use super::lane::{LONGEST_WAIT, PATIENCE};
use super::strangers::Ticket;
use super::*;

const BOUNDS: Bounds = Bounds { slots: 8, per_destination: 100, breaker_failures: 3, payload_bytes: 100 };

fn intake() -> Intake<()> {
    Intake::new(BOUNDS)
}

fn received(destination: &str, released: bool) -> Received<()> {
    static ROWS: AtomicI64 = AtomicI64::new(1);
    let row = ROWS.fetch_add(1, Ordering::Relaxed);
    let task = Task::new(Uuid::nil(), 0, row, None).to(destination.to_owned().into(), released);
    Received::new(task, ())
}

fn push(intake: &mut Intake<()>, destination: &str, count: usize, now: Instant) {
    for _ in 0..count {
        intake.push(received(destination, false), now);
    }
}

/// An intake that knows these destinations as well.
fn acquainted(bounds: Bounds, destinations: &[&str]) -> (Intake<()>, Instant) {
    let (mut intake, now) = (Intake::new(bounds), Instant::now());
    for destination in destinations {
        push(&mut intake, destination, 1, now);
        let ticket = intake.start(1, now)[0].ticket;
        assert_eq!(end(&mut intake, destination, ticket, Some(well()), now), None);
    }
    // What they answered is long ago.
    (intake, now + LONGEST_WAIT * 2)
}

fn start(intake: &mut Intake<()>) -> Vec<String> {
    intake.start(100, Instant::now()).into_iter().map(|it| it.task.destination.as_str().to_owned()).collect()
}

fn end(
    intake: &mut Intake<()>,
    destination: &str,
    ticket: Option<Ticket>,
    finding: Option<Finding>,
    now: Instant,
) -> Option<Report> {
    let answered =
        Answered { destination: destination.to_owned().into(), released: false, ticket, payload_bytes: 0, finding };
    let found = intake.note(Progress::Answered(answered), now);
    assert_eq!(intake.note(Progress::Recorded, now), None);
    found.map(|(_, report, _)| report)
}

fn finish(
    intake: &mut Intake<()>,
    destination: &str,
    released: bool,
    finding: Finding,
    now: Instant,
) -> Option<Report> {
    let finding = Some(finding);
    let answered =
        Answered { destination: destination.to_owned().into(), released, ticket: None, payload_bytes: 0, finding };
    let found = intake.note(Progress::Answered(answered), now);
    assert_eq!(intake.note(Progress::Recorded, now), None);
    found.map(|(_, report, _)| report)
}

fn well() -> Finding {
    Finding { failed: false, slow_down: false, error: String::new() }
}

fn failed() -> Finding {
    Finding { failed: true, slow_down: false, error: "no answer".to_owned() }
}

/// Those that make way because of their destinations.
fn held(intake: &mut Intake<()>, now: Instant) -> usize {
    intake.make_way(now).sick.len()
}

#[test]
fn one_destination_alone_gets_half_of_the_slots_and_the_next_ones_get_theirs() {
    let (mut intake, now) = acquainted(BOUNDS, &["a", "b", "c", "d"]);
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
    let (mut intake, now) = acquainted(BOUNDS, &["a", "b"]);
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
    let (mut intake, now) = acquainted(BOUNDS, &["a", "b"]);
    push(&mut intake, "a", 4, now);
    push(&mut intake, "b", 1, now);
    assert_eq!(start(&mut intake).len(), 5);
    push(&mut intake, "a", 3, now);
    assert_eq!(held(&mut intake, now + PATIENCE * 10), 0, "there is still room for others");
    push(&mut intake, "a", 5, now);
    assert_eq!(held(&mut intake, now), 0);
    let later = now + PATIENCE;
    let way = intake.make_way(later);
    assert_eq!((way.sick.len(), way.crowded.len(), way.found.len()), (8, 0, 1));
    assert!(matches!(&way.found[0], (_, Report::Slow { limit: 4 }, _)));
    // From now on, without a try; but what was set free is tried.
    push(&mut intake, "a", 1, later);
    intake.push(received("a", true), later);
    assert_eq!(held(&mut intake, later), 1);
    assert_eq!(intake.waiting(), 1);
}

#[test]
fn a_destination_that_answers_is_waited_for_a_little_longer() {
    let (mut intake, now) = acquainted(BOUNDS, &["a"]);
    push(&mut intake, "a", 4, now);
    assert_eq!(start(&mut intake).len(), 4);
    push(&mut intake, "a", 9, now);
    finish(&mut intake, "a", false, well(), now + PATIENCE);
    assert_eq!(start(&mut intake).len(), 1);
    assert_eq!(held(&mut intake, now + PATIENCE), 0);
    assert_eq!(held(&mut intake, now + LONGEST_WAIT), 8);
}

#[test]
fn a_slot_is_free_when_its_attempt_is_recorded() {
    let (mut intake, now) = acquainted(BOUNDS, &["a"]);
    let silent = || Answered::new(&received("a", false).task, None, None);
    push(&mut intake, "a", 8, now);
    assert_eq!(start(&mut intake).len(), 4);
    for _ in 0..4 {
        assert_eq!(intake.note(Progress::Answered(silent()), now), None);
    }
    assert_eq!(start(&mut intake).len(), 2, "two of the four that are left");
    push(&mut intake, "a", 6, now);
    let later = now + LONGEST_WAIT;
    for _ in 0..2 {
        intake.note(Progress::Answered(silent()), now);
    }
    assert_eq!(held(&mut intake, later), 0, "the database is slow, and no destination's fault");
}

#[test]
fn strangers_that_hang_leave_slots_for_the_first_contact_and_for_those_known_to_be_well() {
    const MANY: Bounds = Bounds { slots: 256, ..BOUNDS };
    let (mut intake, now) = acquainted(MANY, &["known"]);
    for stranger in 0..256 {
        push(&mut intake, &format!("hangs {stranger}"), 1, now);
    }
    assert_eq!(intake.start(1_000, now).len(), 128, "half of the slots");
    let later = now + LONGEST_WAIT;
    let way = intake.make_way(later);
    assert_eq!((way.sick.len(), way.crowded.len(), way.found.len()), (0, 128, 0), "put off, and nobody is blamed");
    push(&mut intake, "known", 100, later);
    assert_eq!(start_at(&mut intake, later).len(), 64, "half of what is free");

    // As long as many hang, few are let in at a time, and only those that were not put off.
    let put_off = way.crowded.into_iter().next().expect("some were");
    let name = put_off.task.destination.as_str().to_owned();
    intake.push(put_off, later);
    for newcomer in 0..20 {
        push(&mut intake, &format!("newcomer {newcomer}"), 1, later);
    }
    let started = start_at(&mut intake, later);
    assert_eq!(started.iter().filter(|it| it.starts_with("newcomer")).count(), 16, "{started:?}");
    assert!(!started.contains(&name));
    // Until enough of those that hang have ended.
    for stranger in 0..120 {
        let ticket = intake.strangers.oldest();
        end(&mut intake, &format!("hangs {stranger}"), Some(ticket), None, later);
    }
    assert!(start_at(&mut intake, later).contains(&name));
}

fn start_at(intake: &mut Intake<()>, now: Instant) -> Vec<String> {
    intake.start(1_000, now).into_iter().map(|it| it.task.destination.as_str().to_owned()).collect()
}

#[test]
fn large_payloads_share_their_bytes_and_one_alone_may_have_more() {
    let (mut intake, now) = acquainted(BOUNDS, &["a", "b"]);
    let large = |destination: &str, bytes: u32| {
        let mut large = received(destination, false);
        large.task.payload_bytes = bytes;
        large
    };
    for bytes in [60, 60, 30] {
        intake.push(large("a", bytes), now);
    }
    push(&mut intake, "b", 1, now);
    assert_eq!(start(&mut intake), ["a", "b"], "a small one is never in the way");
    let first = Answered::new(&large("a", 60).task, None, Some(well()));
    intake.note(Progress::Answered(first), now);
    assert_eq!(start(&mut intake), ["a", "a"], "60 and 30 are fewer than 100");
    let mut alone = Intake::new(BOUNDS);
    alone.push(large("a", 1_000), now);
    assert_eq!(start(&mut alone), ["a"]);
}

#[test]
fn a_limited_destination_gets_what_it_has_slots_for_in_their_time() {
    let (mut intake, now) = acquainted(BOUNDS, &["a"]);
    let limited = || {
        let mut limited = received("a", false);
        limited.task.limited = true;
        limited
    };
    (0..3).for_each(|_| intake.push(limited(), now));
    assert_eq!(start_at(&mut intake, now), [""; 0]);
    assert_eq!(intake.wanted_slots(now), [("a".to_owned().into(), 3)]);
    assert_eq!(intake.wanted_slots(now), [], "they were asked for");
    let second = Duration::from_secs(1);
    let at = vec![now, now + second, now + second * 2];
    assert_eq!(intake.note(Progress::Slots { destination: "a".to_owned().into(), at }, now), None);
    assert_eq!(start_at(&mut intake, now), ["a"]);
    assert_eq!(intake.next_slot(), Some(now + second));
    assert_eq!(start_at(&mut intake, now + second / 2), [""; 0]);
    // A slot that was missed is not made up for.
    assert_eq!(start_at(&mut intake, now + second * 2), ["a"]);
    assert_eq!(intake.waiting(), 1);
    assert_eq!(intake.wanted_slots(now + second * 2), [("a".to_owned().into(), 1)]);
    // More than a share does not wait here.
    (0..5).for_each(|_| intake.push(limited(), now));
    let way = intake.make_way(now);
    assert_eq!((way.sick.len(), intake.waiting()), (5, BOUNDS.share()));
}

#[test]
fn failures_in_a_row_are_reported_and_a_success_starts_anew() {
    let (mut intake, now) = (intake(), Instant::now());
    let mut end = |finding: Finding, released: bool| {
        intake.push(received("a", released), now);
        let started = intake.start(1, now).remove(0);
        let answered = Answered::new(&started.task, started.ticket, Some(finding));
        let found = intake.note(Progress::Answered(answered), now);
        assert_eq!(intake.note(Progress::Recorded, now), None);
        found.map(|(_, report, _)| report)
    };
    assert_eq!(end(failed(), false), None);
    assert_eq!(end(failed(), false), None);
    assert_eq!(end(well(), false), None);
    assert_eq!(end(failed(), false), None);
    assert_eq!(end(failed(), true), Some(Report::StillDown));
    assert_eq!(end(failed(), false), Some(Report::Down { released: false }));
    assert_eq!(end(well(), true), Some(Report::Recovered));
    assert_eq!(end(well(), true), None, "the same was said a moment ago");
}

#[test]
fn a_receiver_that_asks_to_slow_down_gets_a_moment() {
    let (mut intake, now) = acquainted(BOUNDS, &["a"]);
    push(&mut intake, "a", 2, now);
    intake.start(2, now);
    let asked = Finding { failed: false, slow_down: true, error: "HTTP 429".to_owned() };
    let report = finish(&mut intake, "a", false, asked, now);
    assert_eq!(report, Some(Report::Slow { limit: 2 }));
    push(&mut intake, "a", 1, now);
    assert_eq!(held(&mut intake, now), 1);
}

#[test]
fn what_waited_is_gone_with_its_connection() {
    let (mut intake, now) = (intake(), Instant::now());
    push(&mut intake, "a", 3, now);
    let started = intake.start(1, now);
    intake.give_back(&started[0], now);
    assert_eq!(intake.clear().len(), 2);
    assert!(intake.turns.is_empty() && intake.waiting() == 0 && intake.under_way == 0);
}
