//! What holds of a breaker whatever happens to it, and some lives of one.

use proptest::prelude::*;

use super::*;

const COOL_DOWN: CoolDown = CoolDown { base: Duration::from_secs(30), max: Duration::from_mins(10) };
const NOTHING: Freed = Freed { rows: 0, are_more_held: false };

fn after(breaker: &Breaker, finding: Finding) -> Breaker {
    breaker.found(finding, COOL_DOWN).map_or_else(|| breaker.clone(), |change| change.breaker)
}

/// So much later, as the row would say it.
fn later(breaker: &Breaker, by: Duration) -> Breaker {
    Breaker {
        changed_ago: breaker.changed_ago.saturating_add(by),
        slowed_ago: breaker.slowed_ago.map(|ago| ago + by),
        ..breaker.clone()
    }
}

fn look(breaker: &Breaker, freed: Freed) -> Change {
    breaker.looked(breaker.plan(None), freed, 4_000)
}

#[test]
fn one_wish_to_slow_down_is_over_in_seconds_whatever_the_traffic_is() {
    let slowed = after(&Breaker::default(), Finding::Slow { limit: 10 });
    assert_eq!(slowed.state, State::Metered);
    for freed in [NOTHING, Freed { rows: 1, are_more_held: false }] {
        let soon = look(&later(&slowed, Duration::from_secs(1)), freed);
        assert_eq!(soon.breaker.state, State::Metered);
        let quiet = look(&later(&slowed, QUIET), freed);
        assert_eq!(quiet.breaker.state, State::Closed, "{freed:?}");
    }
    let held = Freed { rows: 0, are_more_held: true };
    assert_eq!(look(&later(&slowed, QUIET), held).breaker.state, State::Metered, "somebody's lock is no end");
}

#[test]
fn a_cool_down_doubles_up_to_its_end_and_begins_anew_after_a_success() {
    let mut breaker = Breaker::default();
    let mut seconds = Vec::new();
    for _ in 0..7 {
        let finding =
            if breaker.state == State::HalfOpen { Finding::StillDown } else { Finding::Down { released: false } };
        let change = breaker.found(finding, COOL_DOWN).expect("it opens");
        seconds.push(change.look_in.as_secs());
        breaker = look(&change.breaker, Freed { rows: 1, are_more_held: true }).breaker;
        assert_eq!(breaker.state, State::HalfOpen);
    }
    assert_eq!(seconds, [30, 60, 120, 240, 480, 600, 600]);
    let well = after(&breaker, Finding::Recovered);
    assert_eq!((well.state, well.openings), (State::Metered, 0));
    let change = well.found(Finding::Down { released: false }, COOL_DOWN).expect("it opens again");
    assert_eq!(change.look_in.as_secs(), 30);
}

#[test]
fn a_probe_that_came_to_nothing_is_replaced_by_one_of_the_other_end() {
    let open = after(&Breaker::default(), Finding::Down { released: false });
    let probed = look(&open, Freed { rows: 1, are_more_held: true });
    assert_eq!((probed.breaker.state, probed.look_in), (State::HalfOpen, PROBE_TIME));
    let again = look(&later(&probed.breaker, PROBE_TIME), Freed { rows: 1, are_more_held: true });
    assert_eq!(again.breaker.state, State::HalfOpen);
    let failed = after(&again.breaker, Finding::StillDown);
    assert_ne!(failed.plan(None).newest, open.plan(None).newest);
}

#[test]
fn a_breaker_whose_jobs_are_gone_lets_the_next_one_try() {
    let open = after(&Breaker::default(), Finding::Down { released: false });
    let metered = look(&open, NOTHING).breaker;
    assert_eq!(metered.state, State::Metered);
    assert_eq!(look(&metered, NOTHING).breaker.state, State::Closed);
}

#[test]
fn what_is_set_free_doubles_each_second_up_to_the_most_and_keeps_to_the_owners_limit() {
    let mut breaker = after(&after(&Breaker::default(), Finding::Down { released: false }), Finding::Recovered);
    let mut in_a_second = 0.0;
    for _ in 0..100 {
        let plan = breaker.plan(None);
        in_a_second = f64::from(plan.rows) / plan.tick.as_secs_f64();
        breaker = look(&breaker, Freed { rows: plan.rows, are_more_held: true }).breaker;
    }
    assert!((in_a_second - 4_000.0).abs() < 1.0, "{in_a_second}");
    for limit in [1, 3, 5, 10, 1_000] {
        let plan = breaker.plan(Some(limit));
        assert!(f64::from(plan.rows) / plan.tick.as_secs_f64() <= f64::from(limit) + 0.001, "{plan:?}");
    }
}

fn state() -> impl Strategy<Value = State> {
    prop::sample::select(&State::ALL[..])
}

fn ago() -> impl Strategy<Value = Duration> {
    (0_u64..10_000_000).prop_map(Duration::from_millis)
}

fn breaker() -> impl Strategy<Value = Breaker> {
    (state(), 0_i32..50, 1_i32..100_000, ago(), prop::option::of(ago())).prop_map(
        |(state, openings, release_limit, changed_ago, slowed_ago)| Breaker {
            state,
            openings,
            release_limit,
            changed_ago,
            slowed_ago,
        },
    )
}

fn finding() -> impl Strategy<Value = Finding> {
    prop_oneof![
        any::<bool>().prop_map(|released| Finding::Down { released }),
        Just(Finding::StillDown),
        (-1_i32..100_000).prop_map(|limit| Finding::Slow { limit }),
        Just(Finding::Recovered),
    ]
}

proptest! {
    #[test]
    fn a_finding_moves_only_along_the_picture(breaker in breaker(), finding in finding()) {
        let Some(change) = breaker.found(finding, COOL_DOWN) else { return Ok(()) };
        let moves = (breaker.state, change.breaker.state);
        prop_assert!(matches!(
            moves,
            (State::Closed | State::Metered | State::HalfOpen, State::Open)
                | (State::Closed | State::Metered | State::Open | State::HalfOpen, State::Metered)
        ), "{moves:?}");
        prop_assert!(change.breaker.release_limit >= 1);
        prop_assert!(change.look_in <= COOL_DOWN.max);
    }

    /// Liveness: with nothing found any more and all that is set free gone, it is closed after a few looks.
    #[test]
    fn whatever_it_is_it_closes_when_nothing_is_wrong_any_more(start in breaker()) {
        let mut breaker = start;
        for _ in 0..4 {
            let change = look(&breaker, NOTHING);
            prop_assert!(change.look_in <= PROBE_TIME);
            breaker = later(&change.breaker, QUIET);
        }
        prop_assert_eq!(breaker.state, State::Closed);
    }

    #[test]
    fn a_plan_sets_something_free_in_bounded_time(breaker in breaker(), limit in prop::option::of(1_i32..1_000)) {
        let plan = breaker.plan(limit);
        prop_assert!(plan.rows >= 1);
        prop_assert!(plan.tick > Duration::ZERO && plan.tick <= PROBE_TIME);
        let fewer = plan.at_most(7);
        prop_assert!((1..=7).contains(&fewer.rows) && fewer.tick <= plan.tick);
        let pace = |plan: Plan| f64::from(plan.rows) / plan.tick.as_secs_f64();
        prop_assert!((pace(fewer) / pace(plan) - 1.0).abs() < 0.001, "the pace stays");
    }
}
