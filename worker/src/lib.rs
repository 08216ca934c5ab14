//! The worker: claims jobs as their tasks come, delivers them and records what happened.
//!
//! consume → claim → guard the target → sign → POST → classify → settle → ack after the commit. The
//! transactions are short and nothing is held over the request but a lease, which outlasts it.

mod claimer;
mod config;
mod consumer;
mod deliver;
mod egress;
mod give_back;
mod intake;
mod keyring;
mod measures;
mod outcome;
mod patience;
mod queue;
mod reporter;
mod response;
mod run;
mod send_error;
mod sender;
mod settler;
mod signature;
mod status_set;
mod take_over;
mod target_guard;
mod tls;
mod trace;
mod worker;

pub use config::Config;
pub use egress::KeyMismatch;
pub use measures::METRICS;
pub use run::run;
