//! The api: accepts signed webhooks. A 202 is sent only after the commit that holds the job and its
//! outbox row.

// What is started.
mod app;
mod config;
mod run;

// What a request goes through until it is understood.
mod connections;
mod extract;
mod head_limits;
mod json;
mod request_id;
mod server;
mod signature;

// What is done with it, and said.
mod error;
mod ingest;
mod model;
mod readiness;
mod routes;

// What is seen of it.
mod log_throttle;
mod measures;

pub use config::Config;
pub use measures::METRICS;
pub use run::run;
