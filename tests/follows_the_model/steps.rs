//! Which steps a world can take: what is generated, and what remains possible when a failure is shrunk.

use outbox::destination::breaker::Finding;
use outbox::job::states::{Status, Verdict};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::strategy::Union;
use proptest_state_machine::ReferenceStateMachine;

use super::model::{Step, TurnEnd};
use super::state::{JOBS, Job, OutboxRow, WORKERS, World};

/// Messages in the broker; more copies than that show nothing new.
const MESSAGES: usize = 12;

/// Messages that a worker takes at once.
const BATCH: usize = 3;

/// The model as the state machine that a test runs.
pub struct Model;

impl ReferenceStateMachine for Model {
    type State = World;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<World> {
        Just(World::default()).boxed()
    }

    fn transitions(world: &World) -> BoxedStrategy<Step> {
        let mut steps = of_owners(world);
        steps.extend(of_relays(world));
        steps.extend(of_workers(world));
        steps.extend(of_time(world));
        Union::new_weighted(steps).boxed()
    }

    fn apply(mut world: World, step: &Step) -> World {
        world.apply(step);
        world
    }

    fn preconditions(world: &World, step: &Step) -> bool {
        match step {
            Step::Accept { .. } => world.jobs.len() < JOBS,
            Step::RelayPublishes { .. } => world.turn.is_none() && any(world, World::is_publishable),
            Step::RelayEnds(end) => world.turn.as_ref().is_some_and(|turn| turn.arrived || *end != TurnEnd::Confirmed),
            Step::RelayChecks => !world.checks.is_empty(),
            Step::RelayGivesTurns => !world.lines.is_empty(),
            Step::RelayHolds => any(world, World::is_to_hold),
            Step::RelayLooks | Step::ClosedByHand => !world.sickness.is_closed(),
            Step::RelayFreesStrays => world.sickness.is_closed() && any(world, World::is_held_for_destination),
            Step::GiveBack { message } => can_give_back(world, *message),
            Step::Report(finding) => world.sickness.is_news(*finding),
            Step::Duplicate { message } => *message < world.broker.len() && world.broker.len() < MESSAGES,
            Step::Deliver { messages, .. } => can_deliver(world, messages),
            Step::Settle { attempt, .. } => {
                let attempt = world.under_way.get(*attempt);
                attempt.is_some_and(|attempt| !(world.holds(attempt) && world.is_held(attempt.job)))
            }
            Step::Crash { worker } => world.under_way.iter().any(|attempt| attempt.worker == *worker),
            Step::LeaseExpires { job } => world.jobs.get(*job).is_some_and(Job::is_leased),
            Step::OutboxRowRings { job } => {
                let silent = |outbox_row: OutboxRow| is_silent(outbox_row) && !world.is_held(*job);
                world.jobs.get(*job).is_some_and(|job| job.outbox_row.is_some_and(silent))
            }
            Step::Cancel { job } => {
                let waits = |it: &Job| it.status == Status::Pending && world.is_held(*job);
                world.jobs.get(*job).is_some_and(|job| !waits(job))
            }
            Step::BrokerWiped => !world.jobs.is_empty(),
        }
    }
}

type Weighted = (u32, BoxedStrategy<Step>);

fn any(world: &World, is_it: fn(&World, usize) -> bool) -> bool {
    (0..world.jobs.len()).any(|job| is_it(world, job))
}

/// A worker that has to touch a row which a relay holds would wait for the relay, and this test with it.
fn can_deliver(world: &World, messages: &[usize]) -> bool {
    if messages.is_empty() || messages.iter().any(|place| *place >= world.broker.len()) {
        return false;
    }
    let batch = world.batch(messages);
    !batch.lost.iter().any(|job| world.is_held(*job))
}

/// Only time makes it due.
fn is_silent(outbox_row: OutboxRow) -> bool {
    !outbox_row.due && outbox_row.waits.is_none()
}

/// A worker that has to settle for a lost one would wait for the relay that holds the row.
fn can_give_back(world: &World, message: usize) -> bool {
    let Some(message) = world.broker.get(message) else { return false };
    let job = &world.jobs[message.job];
    let is_lost = job.status == Status::Processing && job.lease_expired;
    let would_wait = is_lost && world.is_held(message.job);
    !world.sickness.is_closed() && !would_wait
}

fn of_owners(world: &World) -> Vec<Weighted> {
    let key = prop_oneof![2 => Just(None), 5 => Just(Some(0)), 1 => Just(Some(1))];
    let accept = (prop::bool::weighted(0.2), 1..=5, key).prop_map(|(scheduled, max_attempts, key)| Step::Accept {
        scheduled,
        max_attempts,
        key,
    });
    let mut steps = Vec::new();
    if world.jobs.len() < JOBS {
        // Few jobs have long lives within the steps of a case.
        steps.push((if world.jobs.is_empty() { 9 } else { 1 }, accept.boxed()));
    }
    if !world.jobs.is_empty() {
        steps.push((1, (0..world.jobs.len()).prop_map(|job| Step::Cancel { job }).boxed()));
        steps.push((1, Just(Step::BrokerWiped).boxed()));
    }
    steps
}

fn of_relays(world: &World) -> Vec<Weighted> {
    let mut steps = of_turns(world);
    if !world.checks.is_empty() {
        steps.push((4, Just(Step::RelayChecks).boxed()));
    }
    if !world.lines.is_empty() {
        steps.push((8, Just(Step::RelayGivesTurns).boxed()));
    }
    steps.extend(of_destinations(world));
    steps
}

fn of_destinations(world: &World) -> Vec<Weighted> {
    let mut steps = Vec::new();
    let held = any(world, World::is_held_for_destination);
    if any(world, World::is_to_hold) {
        steps.push((5, Just(Step::RelayHolds).boxed()));
    }
    if !world.sickness.is_closed() {
        steps.push((if held { 5 } else { 2 }, Just(Step::RelayLooks).boxed()));
        steps.push((1, Just(Step::ClosedByHand).boxed()));
    } else if held {
        steps.push((5, Just(Step::RelayFreesStrays).boxed()));
    }
    if !world.jobs.is_empty() {
        let findings = [
            (1, Finding::Down { released: false }),
            (3, Finding::StillDown),
            (1, Finding::Slow { limit: 1_000 }),
            (2, Finding::Recovered),
        ];
        let news = findings.into_iter().filter(|(_, finding)| world.sickness.is_news(*finding));
        steps.extend(news.map(|(weight, finding)| (weight, Just(Step::Report(finding)).boxed())));
    }
    let given_back: Vec<usize> = (0..world.broker.len()).filter(|place| can_give_back(world, *place)).collect();
    if !given_back.is_empty() {
        steps.push((3, select(given_back).prop_map(|message| Step::GiveBack { message }).boxed()));
    }
    steps
}

fn of_turns(world: &World) -> Vec<Weighted> {
    let Some(turn) = &world.turn else {
        let publishes = prop::bool::weighted(0.85).prop_map(|arrives| Step::RelayPublishes { arrives });
        return if any(world, World::is_publishable) { vec![(8, publishes.boxed())] } else { Vec::new() };
    };
    let mut ends = vec![
        (2, Just(Step::RelayEnds(TurnEnd::Unconfirmed)).boxed()),
        (3, Just(Step::RelayEnds(TurnEnd::Killed)).boxed()),
    ];
    if turn.arrived {
        ends.push((9, Just(Step::RelayEnds(TurnEnd::Confirmed)).boxed()));
    }
    ends
}

fn of_workers(world: &World) -> Vec<Weighted> {
    let mut steps = Vec::new();
    let messages = world.broker.len();
    if messages > 0 {
        let places: Vec<usize> = (0..messages).collect();
        let taken = subsequence(places, 1..=messages.min(BATCH));
        let deliver = (0..WORKERS, taken, prop::bool::weighted(0.15))
            .prop_map(|(worker, messages, answer_lost)| Step::Deliver { worker, messages, answer_lost });
        steps.push((6, deliver.boxed()));
        let moves = |place: &usize| {
            let batch = world.batch(&[*place]);
            !(batch.claimed.is_empty() && batch.lost.is_empty())
        };
        let moving: Vec<usize> = (0..messages).filter(moves).collect();
        if !moving.is_empty() {
            let deliver = (0..WORKERS, select(moving)).prop_map(|(worker, place)| Step::Deliver {
                worker,
                messages: vec![place],
                answer_lost: false,
            });
            steps.push((8, deliver.boxed()));
        }
        if messages < MESSAGES {
            steps.push((2, (0..messages).prop_map(|message| Step::Duplicate { message }).boxed()));
        }
    }
    if !world.under_way.is_empty() {
        let verdict =
            prop_oneof![2 => Just(Verdict::Success), 4 => Just(Verdict::TryAgain), 1 => Just(Verdict::GiveUp)];
        let settle = (attempts(world), verdict, prop::bool::weighted(0.7), prop::bool::weighted(0.2)).prop_map(
            |(attempt, verdict, retry_at_once, twice)| Step::Settle { attempt, verdict, retry_at_once, twice },
        );
        let zombies = (0..world.under_way.len()).any(|attempt| world.is_zombie(attempt));
        steps.push((if zombies { 12 } else { 5 }, settle.boxed()));
        let workers: Vec<usize> = world.under_way.iter().map(|attempt| attempt.worker).collect();
        steps.push((1, select(workers).prop_map(|worker| Step::Crash { worker }).boxed()));
    }
    steps
}

/// An attempt to settle: mostly a zombie, if there is one. One that has lost its lease to nobody yet may
/// become one, so that it is mostly left alone.
fn attempts(world: &World) -> BoxedStrategy<usize> {
    let all: Vec<usize> = (0..world.under_way.len()).collect();
    let zombies: Vec<usize> = all.iter().copied().filter(|attempt| world.is_zombie(*attempt)).collect();
    let is_leased = |attempt: &usize| {
        let attempt = &world.under_way[*attempt];
        world.holds(attempt) && world.jobs[attempt.job].is_leased()
    };
    let leased: Vec<usize> = all.iter().copied().filter(is_leased).collect();
    let weighted = [(9, zombies), (3, leased), (1, all)].into_iter().filter(|(_, attempts)| !attempts.is_empty());
    Union::new_weighted(weighted.map(|(weight, attempts)| (weight, select(attempts).boxed())).collect()).boxed()
}

fn of_time(world: &World) -> Vec<Weighted> {
    let jobs = world.jobs.iter().enumerate();
    let leased: Vec<usize> = jobs.clone().filter(|(_, job)| job.is_leased()).map(|(place, _)| place).collect();
    let silent = jobs.filter(|(_, job)| job.outbox_row.is_some_and(is_silent)).map(|(place, _)| place);
    let silent: Vec<usize> = silent.collect();
    let mut steps = Vec::new();
    if !leased.is_empty() {
        steps.push((6, select(leased).prop_map(|job| Step::LeaseExpires { job }).boxed()));
    }
    // Whoever lost its lease to nobody yet: the outbox row is what finds out.
    let lost = |job: &usize| world.jobs[*job].status == Status::Processing && world.jobs[*job].lease_expired;
    let found: Vec<usize> = silent.iter().copied().filter(lost).collect();
    if !found.is_empty() {
        steps.push((8, select(found).prop_map(|job| Step::OutboxRowRings { job }).boxed()));
    }
    if !silent.is_empty() {
        steps.push((3, select(silent).prop_map(|job| Step::OutboxRowRings { job }).boxed()));
    }
    steps
}
