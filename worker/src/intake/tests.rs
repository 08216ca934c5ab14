use uuid::Uuid;

use super::lane::{LONGEST_WAIT, PATIENCE};
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
    assert_eq!(end(failed(), false), Some(Report::Down { error: "no answer".to_owned(), released: false }));
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
