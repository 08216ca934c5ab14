//! What goes into the intake, what becomes of it, and what comes out of it.

use outbox::broker::task::Task;
use outbox::destination::Destination;
use outbox::destination::breaker::Finding as Report;
use tokio::time::Instant;

use super::strangers::Ticket;

/// A task and what is needed to answer for it.
#[derive(Debug)]
pub(crate) struct Received<Delivery> {
    pub task: Task,
    pub delivery: Delivery,
    /// Once it is started, if its destination is not known to be well.
    pub ticket: Option<Ticket>,
}

impl<Delivery> Received<Delivery> {
    pub(crate) const fn new(task: Task, delivery: Delivery) -> Self {
        Self { task, delivery, ticket: None }
    }
}

/// How a destination fared in one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// It did not answer, or answered that it failed.
    pub failed: bool,
    /// It asks to slow down.
    pub slow_down: bool,
    /// What was wrong, in a few words.
    pub error: String,
}

/// What becomes of an attempt that was started, in this order; and slots of a limit that came.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Its request has ended: its destination may have the next one.
    Answered(Answered),
    /// It is recorded, or will be without its slot: that is free.
    Recorded,
    /// When requests to a destination with a limit may go.
    Slots { destination: Destination, at: Vec<Instant> },
}

/// The end of a request.
#[derive(Debug)]
pub(crate) struct Answered {
    pub destination: Destination,
    pub released: bool,
    pub ticket: Option<Ticket>,
    pub payload_bytes: u32,
    /// `None` if the attempt says nothing about its destination.
    pub finding: Option<Finding>,
}

impl Answered {
    /// The end of this task's attempt.
    pub(crate) fn new(task: &Task, ticket: Option<Ticket>, finding: Option<Finding>) -> Self {
        let destination = task.destination.clone();
        Self { destination, released: task.released, ticket, payload_bytes: task.payload_bytes, finding }
    }
}

/// What all workers and relays should know of a destination, and what it was found by.
pub(crate) type Found = (Destination, Report, String);

/// What must make way for others.
pub(crate) struct MakesWay<Delivery> {
    /// Tasks of destinations that are sick: they wait for them.
    pub sick: Vec<Received<Delivery>>,
    /// Tasks for which there is no slot for now: they come again in a moment.
    pub crowded: Vec<Received<Delivery>>,
    /// The same of destinations that have requests under way and answer none: they come again later.
    pub hanging: Vec<Received<Delivery>>,
    /// What that says about destinations.
    pub found: Vec<Found>,
}
