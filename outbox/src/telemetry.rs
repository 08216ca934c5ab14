//! Logs and metrics.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

/// What is logged, and how.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs")]
pub struct LogConfig {
    /// What to log, as in `info` or `info,outhook_worker=debug`.
    #[arg(long, env, default_value = "info,lapin=off,refinery_core=warn,rustls_platform_verifier=off", value_parser = filter)]
    rust_log: String,
    /// Form of the log lines, written to standard error.
    #[arg(long, env, default_value = "text", value_enum)]
    log_format: LogFormat,
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// A JSON object a line.
    Json,
    /// Text for people.
    Text,
}

fn filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Starts logging; done once, before anything is logged.
///
/// From here on a panic ends the process. A task that vanishes would leave a process behind that looks
/// well and does half its work; one that ends is started again, and finds all it needs in Postgres.
pub fn start_logging(config: &LogConfig) {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    let filter = EnvFilter::new(&config.rust_log);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.log_format {
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
        LogFormat::Text => subscriber.init(),
    }
}

/// Where metrics are served.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Metrics")]
pub struct MetricsConfig {
    /// Address and port for `GET /metrics` in Prometheus format, and `GET /health`; not served when unset.
    #[arg(long, env)]
    metrics_addr: Option<SocketAddr>,
}

/// Upper bounds of the histograms' buckets, in seconds: from one commit to the longest time-out.
const SECONDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// How often samples are folded into their buckets; the exporter's own default.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Upper bounds of the buckets of batch sizes.
const BATCH: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0];

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

/// Starts counting, and serves the metrics if an address is configured; done once.
///
/// # Errors
/// The address cannot be listened on.
pub async fn start_metrics(config: &MetricsConfig) -> Result<PrometheusHandle, MetricsError> {
    use metrics_exporter_prometheus::Matcher::Suffix;
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Suffix("_batch_size".to_owned()), &BATCH)?;
    let Some(address) = config.metrics_addr else {
        let handle = builder.install_recorder()?;
        tokio::spawn(keep_up(handle.clone()));
        return Ok(handle);
    };
    // The listener binds late, inside its task: look first, so that a taken port stops the start.
    drop(TcpListener::bind(address).await.map_err(|error| MetricsError::Listen(address, error))?);
    let (recorder, serve) = builder.with_http_listener(address).build()?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).expect("metrics are started once");
    tokio::spawn(serve);
    Ok(handle)
}

/// Folds samples into their buckets; nobody may ever ask for the metrics, and they must not pile up.
async fn keep_up(handle: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        handle.run_upkeep();
    }
}
