//! What the three processes of Outhook agree on: jobs and their alarm clocks in Postgres, and the
//! thin messages that travel through RabbitMQ.
//!
//! The modules stand in the order of a webhook's way: accepted by the api ([`enqueue`]), found due by
//! the relay ([`due`]) unless its [`destination`] is sick or its turn in an [`ordering`] has not come, carried as a
//! [`message`] over the [`topology`], claimed by a worker ([`claim`]) and settled ([`settle`]), perhaps to be [`retry`]-ed, unless its owner withdraws it ([`cancel`]). The
//! rest is what every process needs.

pub mod cancel;
pub mod claim;
pub mod destination;
pub mod destination_keys;
pub mod due;
pub mod enqueue;
pub mod headers;
pub mod installation;
pub mod job;
pub mod message;
pub mod missing;
pub mod ordering;
pub mod retry;
pub mod secret;
pub mod settle;
pub mod signing_key;
pub mod target;
pub mod topology;
pub mod trace;

pub mod backoff;
pub mod batch;
pub mod clock;
pub mod database;
pub mod env;
#[cfg(feature = "kill-points")]
pub mod kill_point;
pub mod notify;
pub mod pem;
pub mod reload;
pub mod shutdown;
pub mod telemetry;

/// A point at which a test may end the process: see the module `kill_point`. Nothing without its feature.
#[cfg(feature = "kill-points")]
#[macro_export]
macro_rules! kill_point {
    ($point:literal) => {
        $crate::kill_point::pass($point)
    };
}

/// The same while a future is under way, whose output this is.
#[cfg(feature = "kill-points")]
#[macro_export]
macro_rules! kill_point_in {
    ($point:literal, $future:expr) => {
        $crate::kill_point::pass_in($point, $future)
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
