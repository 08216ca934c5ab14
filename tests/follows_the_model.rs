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

use std::cell::Cell;

use harness::report;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use uuid::Uuid;

use self::replay::Replay;
use self::steps::Model;

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

#[test]
fn any_order_of_events_leads_where_the_model_says() {
    let config = config();
    let (cases, seed) = (config.cases, config.rng_seed);
    let steps = Cell::new(0);
    let mut runner = TestRunner::new(config.clone());
    let strategy = Model::sequential_strategy(1..=STEPS);
    let result = runner.run(&strategy, |(world, transitions, seen)| {
        steps.set(steps.get() + transitions.len());
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
    report(&format!("model: {cases} cases, {} steps, seed {seed:?}", steps.get()));
}
