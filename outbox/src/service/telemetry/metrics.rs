//! Metrics: what is counted, and where it can be read.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

use super::{Readiness, logs, probes};

/// Where metrics are served.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Metrics")]
pub struct MetricsConfig {
    /// Address and port for `GET /metrics` in Prometheus format, `GET /health`, and, of relay and worker, `GET /ready`;
    /// not served when unset.
    #[arg(long, env)]
    metrics_addr: Option<SocketAddr>,
}

/// A metric: its name, which ends in its unit, what it says, and which series of it there are from the start.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    name: &'static str,
    help: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Counter(Option<Label>),
    Gauge(Option<Label>),
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// A label, and those of its values that are known beforehand.
type Label = (&'static str, &'static [&'static str]);

impl Metric {
    /// What only grows.
    #[must_use]
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Counter(None) }
    }

    /// The same, for each value of a label. Without values, each series appears when it is first raised.
    #[must_use]
    pub const fn counters(
        name: &'static str,
        label: &'static str,
        values: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self { name, help, kind: Kind::Counter(Some((label, values))) }
    }

    /// What goes up and down.
    #[must_use]
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Gauge(None) }
    }

    /// The same, for each value of a label.
    #[must_use]
    pub const fn gauges(
        name: &'static str,
        label: &'static str,
        values: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self { name, help, kind: Kind::Gauge(Some((label, values))) }
    }

    /// Times of one request or statement.
    #[must_use]
    pub const fn seconds(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Histogram(&SECONDS) }
    }

    /// Times that may be long.
    #[must_use]
    pub const fn hours(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Histogram(&HOURS) }
    }

    /// Sizes of batches.
    #[must_use]
    pub const fn sizes(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Histogram(&SIZES) }
    }

    /// Says what it is, and makes its series.
    fn register(&self) {
        let name = self.name;
        match self.kind {
            Kind::Counter(label) => {
                metrics::describe_counter!(name, self.help);
                each_series(label, |labels| drop(metrics::counter!(name, labels)));
            }
            Kind::Gauge(label) => {
                metrics::describe_gauge!(name, self.help);
                each_series(label, |labels| drop(metrics::gauge!(name, labels)));
            }
            Kind::Histogram(_) => {
                metrics::describe_histogram!(name, self.help);
                drop(metrics::histogram!(name));
            }
        }
    }
}

fn each_series(label: Option<Label>, make: impl Fn(&[(&'static str, &'static str)])) {
    match label {
        None => make(&[]),
        Some((label, values)) => values.iter().for_each(|value| make(&[(label, *value)])),
    }
}

/// Raises a gauge for as long as it lives.
pub struct Raised {
    gauge: metrics::Gauge,
    by: f64,
}

impl Raised {
    /// Raises it.
    #[must_use]
    pub fn by(gauge: metrics::Gauge, by: f64) -> Self {
        gauge.increment(by);
        Self { gauge, by }
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        self.gauge.decrement(self.by);
    }
}

/// Upper bounds of the buckets, in seconds: from one commit to the longest time-out there can be.
const SECONDS: [f64; 17] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// From a delivery that waits for nothing to the last retries, in seconds.
const HOURS: [f64; 17] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0];

/// Upper bounds of the buckets of batch sizes: up to the largest that can be configured.
const SIZES: [f64; 12] = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0];

/// What every process counts.
const COMMON: [Metric; 2] = [
    Metric::counter(
        "outhook_log_lines_lost_total",
        "Log lines that could not be written: the disk is full, or nobody reads any more.",
    ),
    Metric::counters(
        "outhook_reloads_total",
        "outcome",
        &["done", "failed"],
        "SIGHUPs, by whether secrets and certificates could be read anew.",
    ),
];

/// How often samples are folded into their buckets; the exporter's own default.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address is taken, or not ours.
    #[error("METRICS_ADDR: cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// The exporter refuses its settings.
    #[error("metrics: {0}")]
    Exporter(#[from] metrics_exporter_prometheus::BuildError),
}

/// Starts counting, and serves the metrics if an address is configured; done once. With `readiness`, that is
/// served beside them.
///
/// # Errors
/// The address cannot be listened on.
pub async fn start_metrics(
    config: &MetricsConfig,
    metrics: &[Metric],
    readiness: Option<Readiness>,
) -> Result<PrometheusHandle, MetricsError> {
    let mut builder = PrometheusBuilder::new();
    for metric in metrics {
        if let Kind::Histogram(buckets) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
        }
    }
    let handle = builder.install_recorder()?;
    COMMON.iter().chain(metrics).for_each(Metric::register);
    logs::count_lost();
    tokio::spawn(keep_up(handle.clone()));
    if let Some(address) = config.metrics_addr {
        let listener = TcpListener::bind(address).await.map_err(|error| MetricsError::Listen(address, error))?;
        tokio::spawn(probes::serve(listener, handle.clone(), readiness));
    }
    Ok(handle)
}

/// Folds samples into their buckets; nobody may ever ask for the metrics, and they must not pile up.
async fn keep_up(handle: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        handle.run_upkeep();
    }
}
