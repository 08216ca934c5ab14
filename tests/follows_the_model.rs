//! A few jobs, two workers, a relay and a broker do anything in any order: after each step the database is
//! where a small model of it is, and whatever has happened, every job comes to its end.
//!
//! `PROPTEST_RNG_SEED` repeats a run, `PROPTEST_CASES` makes it longer.

mod compare;
mod ground;
mod model;
mod replay;
mod settlements;
mod state;
mod steps;
mod tally;
mod tending;
mod waiting;

use std::cell::Cell;
use std::sync::Mutex;

use harness::report;
use outbox::destination::breaker::Finding;
use outbox::job::states::Verdict;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use uuid::Uuid;

use self::model::{Step, TurnEnd};
use self::replay::Replay;
use self::state::World;
use self::steps::Model;
use self::tally::Tally;

/// The tests of this file share a database.
static TURN: Mutex<()> = Mutex::new(());

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
    let mut steps = vec![Step::Accept { scheduled: false, max_attempts: 5, key: None }];
    steps.extend(publish());
    steps.push(Step::Duplicate { message: 0 });
    steps.extend(deliver(0));
    steps.extend([Step::LeaseExpires { job: 0 }, Step::OutboxRowRings { job: 0 }]);
    // The second worker takes over, finds a stale message, and gets the next attempt.
    steps.extend(publish().into_iter().chain(deliver(1)).chain(deliver(1)));
    steps.extend(publish().into_iter().chain(deliver(1)));
    // The zombie first.
    steps.extend(settle(true).into_iter().chain(settle(false)));
    steps
}

/// One row that was published and is due again, as it is when somebody held it or its message was lost; and a scheduled one
/// of a key, whose time has come. Their destination falls sick just then, and stays so.
fn stories_of_sick_destinations() -> [Vec<Step>; 2] {
    let accept = |scheduled, key| Step::Accept { scheduled, max_attempts: 5, key };
    let publish = [Step::RelayPublishes { arrives: true }, Step::RelayEnds(TurnEnd::Confirmed)];
    let slow = || Step::Report(Finding::Slow { limit: 1_000 });
    let mut published = vec![accept(false, None)];
    published.extend(publish.into_iter().chain([Step::OutboxRowRings { job: 0 }, slow()]));
    [published, vec![accept(true, Some(0)), Step::OutboxRowRings { job: 0 }, slow()]]
}

/// Whether a relay that does all that it can leaves a row alone that is due.
fn leaves_alone(story: &[Step]) -> bool {
    let (mut replay, mut world) = (Replay::init_test(&World::default()), World::default());
    for step in story {
        world.apply(step);
        replay = Replay::apply(replay, &world, step.clone());
    }
    let left = replay.ground.runtime.block_on(async {
        for _ in 0..2 {
            replay.hold().await;
            replay.relay_publishes(true).await;
            replay.relay_ends(TurnEnd::Confirmed).await;
            replay.give_turns().await;
        }
        replay.hold().await;
        let left = "SELECT count(*) FROM outbox WHERE waits_for IS NULL AND due_at <= now()";
        sqlx::query_scalar::<_, i64>(left).fetch_one(&replay.ground.pool).await.expect("rows can be counted")
    });
    left > 0
}

#[test]
fn nothing_that_is_due_for_a_sick_destination_is_left_alone() {
    let _turn = TURN.lock();
    let left: Vec<_> = stories_of_sick_destinations().into_iter().filter(|story| leaves_alone(story)).collect();
    assert!(left.is_empty(), "a row is due, and neither published nor held, after each of: {left:#?}");
}

/// One relay has published a row and heard the confirm, and another finds the broker wiped before the first has recorded
/// that.
#[test]
fn what_a_wiped_broker_lost_is_published_again_also_if_it_is_recorded_later() {
    let _turn = TURN.lock();
    let (mut replay, mut world) = (Replay::init_test(&World::default()), World::default());
    let accept = Step::Accept { scheduled: false, max_attempts: 5, key: None };
    let publish = Step::RelayPublishes { arrives: true };
    for step in [accept, publish, Step::BrokerWiped, Step::RelayEnds(TurnEnd::Confirmed)] {
        world.apply(&step);
        replay = Replay::apply(replay, &world, step);
    }
    replay.ground.runtime.block_on(async {
        replay.relay_checks().await;
        replay.relay_publishes(true).await;
        replay.relay_ends(TurnEnd::Confirmed).await;
    });
    assert_eq!(replay.broker.len(), 1, "the row sleeps, and its message is gone");
}

#[test]
fn any_order_of_events_leads_where_the_model_says() {
    let _turn = TURN.lock();
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
