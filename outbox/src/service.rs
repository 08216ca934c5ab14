//! What every process does: reads its configuration, connects to Postgres, logs, is measured, and ends.

pub mod backoff;
pub mod batch;
pub mod clock;
pub mod database;
pub mod env;
pub mod installation;
#[cfg(feature = "kill-points")]
pub mod kill_point;
pub mod notify;
pub mod pem;
pub mod reload;
pub mod shutdown;
pub mod telemetry;
