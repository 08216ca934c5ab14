//! A few jobs, two workers, a relay and a broker do anything in any order: after each step the database is
//! where a small model of it is, and whatever has happened, every job comes to its end.
//!
//! `PROPTEST_RNG_SEED` repeats a run, `PROPTEST_CASES` makes it longer.

mod compare;
mod ground;
mod model;
mod replay;
mod settlements;
mod steps;
mod tally;

use std::cell::Cell;

use harness::report;
use outbox::job::Verdict;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use uuid::Uuid;

use self::model::{Step, TurnEnd, World};
use self::replay::Replay;
use self::steps::Model;
use self::tally::Tally;

const CASES: u32 = 64;
const STEPS: usize = 40;

/// Milliseconds for the search of a shorter case that fails too.
const SHRINK_TIME: u32 = 60_000;

fn config() -> Config {
    // Reads its variables; what they do not say is decided here.
    let mut config = Config {
        max_shrink_time: SHRINK_TIME,
        max_shrink_iters: u32::MAX - 1,
        failure_persistence: None,
        ..Config::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(Uuid::new_v4().as_u64_pair().0);
    }
    config
}

/// The longest way to what must not be missed, whatever the random cases meet: a stale message of a job that
/// is free, and a worker that settles while its successor is at it.
fn story_of_a_zombie() -> Vec<Step> {
    let publish = || [Step::RelayPublishes { arrives: true }, Step::RelayEnds(TurnEnd::Confirmed)];
    let deliver = |worker| [Step::Deliver { worker, messages: vec![0], answer_lost: false }];
    let settle = |twice| [Step::Settle { attempt: 0, verdict: Verdict::Success, retry_at_once: false, twice }];
    let mut steps = vec![Step::Accept { scheduled: false, max_attempts: 5 }];
    steps.extend(publish());
    steps.push(Step::Duplicate { message: 0 });
    steps.extend(deliver(0));
    steps.extend([Step::LeaseExpires { job: 0 }, Step::AlarmRings { job: 0 }]);
    // The second worker takes over, finds a stale message, and gets the next attempt.
    steps.extend(publish().into_iter().chain(deliver(1)).chain(deliver(1)));
    steps.extend(publish().into_iter().chain(deliver(1)));
    // The zombie first.
    steps.extend(settle(true).into_iter().chain(settle(false)));
    steps
}

#[test]
fn any_order_of_events_leads_where_the_model_says() {
    let config = config();
    let (cases, seed) = (config.cases, config.rng_seed);
    let tally = Cell::new(Tally::default());
    let mut runner = TestRunner::new(config.clone());
    let strategy = Model::sequential_strategy(STEPS / 2..=STEPS);
    let mut first = tally.get();
    first.add(World::default(), &story_of_a_zombie());
    tally.set(first);
    Replay::test_sequential(config.clone(), World::default(), story_of_a_zombie(), None);
    let result = runner.run(&strategy, |(world, transitions, seen)| {
        let mut sum = tally.get();
        sum.add(world.clone(), &transitions);
        tally.set(sum);
        Replay::test_sequential(config.clone(), world, transitions, seen);
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, (_, steps, _))) => {
            let steps: Vec<String> = steps.iter().map(|step| format!("    {step:?}")).collect();
            panic!("{reason}\nafter:\n{}\nPROPTEST_RNG_SEED of this run: {seed:?}", steps.join("\n"));
        }
        Err(TestError::Abort(reason)) => panic!("{reason}; PROPTEST_RNG_SEED of this run: {seed:?}"),
    }
    let tally = tally.get();
    report(&format!("model: {cases} cases, {tally:?}, seed {seed:?}"));
    assert!(cases < CASES || tally.is_complete(), "the cases missed something: {tally:?}");
}
