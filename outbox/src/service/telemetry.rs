//! Logs, metrics and probes.

mod logs;
mod metrics;
mod probes;
mod readiness;

pub use logs::{LogConfig, LogFormat, flush_logs, say, start_logging};
pub use metrics::{Metric, MetricsConfig, MetricsError, Raised, start_metrics};
pub use readiness::{Readiness, Server};
