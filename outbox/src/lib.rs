//! What the processes of Outhook agree on: jobs and their outbox rows in Postgres, and the thin tasks that travel through
//! RabbitMQ.
//!
//! A webhook's way: its job is accepted ([`job::accept`]) with an outbox row, which the relay finds when it is [`due`],
//! unless its [`destination`] is sick or its turn in an ordering has not come. A task goes to a worker by the [`broker`]; the
//! worker claims the job ([`job::claim`]), posts it where its [`target`] may be, with a [`signing`] key, and settles it
//! ([`job::settle`]), perhaps to [`retry`]. The [`service`] is what every process needs besides.

pub mod broker;
pub mod destination;
pub mod due;
pub mod job;
pub mod retry;
pub mod service;
pub mod signing;
pub mod target;
pub mod trace_context;

/// A point at which a test may end the process: see the module `service::kill_point`. Nothing without its feature.
#[cfg(feature = "kill-points")]
#[macro_export]
macro_rules! kill_point {
    ($point:literal) => {
        $crate::service::kill_point::pass($point)
    };
}

/// The same while a future is under way, whose output this is.
#[cfg(feature = "kill-points")]
#[macro_export]
macro_rules! kill_point_in {
    ($point:literal, $future:expr) => {
        $crate::service::kill_point::pass_in($point, $future)
    };
}

/// A point at which a test may end the process. This build has none.
#[cfg(not(feature = "kill-points"))]
#[macro_export]
macro_rules! kill_point {
    ($point:literal) => {};
}

/// A point at which a test may end the process. This build has none.
#[cfg(not(feature = "kill-points"))]
#[macro_export]
macro_rules! kill_point_in {
    ($point:literal, $future:expr) => {
        $future
    };
}
