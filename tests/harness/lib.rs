//! What the tests stand on: real servers, the real binaries, a receiver that keeps a log, and the
//! invariants that must hold whatever was killed.
//!
//! A test starts a [`Stack`], does something to it, and ends with [`Stack::finish`], which checks
//! every invariant. Everything of a stack has names of its own, so tests run in parallel.

pub mod client;
pub mod http2_server;
pub mod invariants;
pub mod job;
pub mod load;
pub mod stack;

pub mod attempts;
pub mod broker;
pub mod certificates;
pub mod cluster;
pub mod collector;
pub mod database;
mod environment;
pub mod forward_proxy;
pub mod latency;
pub mod management;
mod name;
pub mod nginx;
pub mod plain_publisher;
pub mod pooler;
pub mod postgres_with_tls;
pub mod processes;
pub mod raw_server;
pub mod servers;
pub mod signing;
pub mod small_disk;
pub mod standby;
pub mod tcp_proxy;
pub mod tls_broker;
pub mod wait;
mod webhook;

pub use client::{Accepted, Client, Job};
pub use processes::{Process, Program};
pub use raw_server::RawServer;
pub use servers::Servers;
pub use stack::{Stack, StackBuilder};
pub use tcp_proxy::{Mode, TcpProxy};
pub use wait::{PATIENCE, look_for, wait_for, wait_until};
pub use webhook::Webhook;

/// Says something that is seen also when the test passes: standard output is kept from those who watch.
pub fn report(line: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{line}\n").as_bytes());
}
