//! How often a run met what it is there for: one that never did shows nothing.

use outbox::destination::breaker::State;
use outbox::job::states::Status;

use super::model::{Step, TurnEnd};
use super::state::{Waits, World};

/// Counts over all cases of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub steps: usize,
    /// Settlements by a worker that lost its lease to one that is at it.
    pub zombies: usize,
    /// Messages of an earlier attempt that found their job free.
    pub stale: usize,
    /// Lost workers that were found.
    pub taken_over: usize,
    /// Relays killed after the broker had their messages.
    pub confirms_lost: usize,
    /// Jobs cancelled.
    pub cancelled: usize,
    /// Turns given to one of a key of which others wait.
    pub turns: usize,
    /// Rows held for their destination, by a relay or a worker.
    pub held: usize,
    /// Rows set free as probes.
    pub probes: usize,
}

impl Tally {
    /// Counts what these steps do, from this world on.
    pub fn add(&mut self, mut world: World, steps: &[Step]) {
        for step in steps {
            self.count(&world, step);
            world.apply(step);
        }
        self.steps += steps.len();
    }

    fn count(&mut self, world: &World, step: &Step) {
        match step {
            Step::Settle { attempt, .. } => self.zombies += usize::from(world.is_zombie(*attempt)),
            Step::Deliver { messages, .. } => {
                self.taken_over += world.batch(messages).lost.len();
                let stale = messages.iter().map(|place| world.broker[*place]).filter(|message| {
                    let job = &world.jobs[message.job];
                    job.status == Status::Pending && job.attempt > message.attempt
                });
                self.stale += stale.count();
            }
            Step::RelayEnds(TurnEnd::Killed) => {
                self.confirms_lost += usize::from(world.turn.as_ref().is_some_and(|turn| turn.arrived));
            }
            Step::RelayGivesTurns => self.turns += turns_with_others(world),
            Step::RelayHolds => {
                self.held += (0..world.jobs.len()).filter(|job| world.is_to_hold(*job)).count();
            }
            Step::RelayLooks => {
                let is_probing = matches!(world.sickness.state, State::Open | State::HalfOpen);
                let any_held = (0..world.jobs.len()).any(|job| world.is_held_for_destination(job));
                self.probes += usize::from(is_probing && any_held);
            }
            Step::Cancel { job } => self.cancelled += usize::from(world.jobs[*job].status == Status::Pending),
            _ => {}
        }
    }

    /// Whether each of them happened.
    pub fn is_complete(&self) -> bool {
        let ends = [self.zombies, self.stale, self.taken_over, self.confirms_lost, self.cancelled];
        ends.iter().chain(&[self.turns, self.held, self.probes]).all(|count| *count > 0)
    }
}

fn turns_with_others(world: &World) -> usize {
    let waiting = |key: u8| {
        let of_key = world.jobs.iter().filter(move |job| job.key == Some(key));
        of_key.filter(|job| job.outbox_row.is_some_and(|outbox_row| outbox_row.waits == Some(Waits::Turn))).count()
    };
    world.lines.iter().filter(|key| waiting(**key) > 1).count()
}
