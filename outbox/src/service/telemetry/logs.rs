//! Logs, on standard error.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Arguments;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterFn, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What is logged, and how.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs")]
pub struct LogConfig {
    /// What to log, as in `info` or `info,outhook_worker=debug`. Of libraries, nothing below `warn` is logged whatever
    /// stands here: it names hosts.
    #[arg(long, env, default_value = "info,lapin=off", value_parser = filter)]
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
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        match backtrace.status() {
            BacktraceStatus::Captured => say(format_args!("{panic}\n{backtrace}")),
            _ => say(format_args!("{panic}")),
        }
        std::process::abort();
    }));
    let filter = EnvFilter::new(&config.rust_log);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| StandardError)
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal());
    match config.log_format {
        LogFormat::Json => subscriber.json().flatten_event(true).finish().with(no_hosts()).init(),
        LogFormat::Text => subscriber.finish().with(no_hosts()).init(),
    }
}

/// Leaves out what libraries say at length: which hosts they connect to, and the values that they send to Postgres.
fn no_hosts() -> FilterFn {
    filter_fn(|event| {
        let is_ours = ["outbox", "outhook", "traces"].iter().any(|ours| event.target().starts_with(ours));
        is_ours || *event.level() <= Level::WARN
    })
}

/// Log lines that wait to be written; some megabytes. What comes while there are as many is lost.
const LINES_WAITING: usize = 10_000;

/// How long a process waits at its end for its last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Log lines that could not be written, since the process started.
static LOST: AtomicU64 = AtomicU64::new(0);

/// What a thread of its own writes to standard error: a reader that is there and does not read stops only that.
static ENTRIES: OnceLock<SyncSender<Entry>> = OnceLock::new();

enum Entry {
    Line(Vec<u8>),
    /// Answered when all lines before it were written.
    Flush(SyncSender<()>),
}

fn entries() -> &'static SyncSender<Entry> {
    ENTRIES.get_or_init(|| {
        let (sender, receiver) = sync_channel(LINES_WAITING);
        // Without a thread all lines are lost, and counted.
        drop(thread::Builder::new().name("log".to_owned()).spawn(move || write_all(receiver)));
        sender
    })
}

fn write_all(entries: Receiver<Entry>) {
    for entry in entries {
        match entry {
            // A full disk, or a reader that went away, ends no delivery.
            Entry::Line(line) => {
                if io::stderr().write_all(&line).is_err() {
                    lose();
                }
            }
            Entry::Flush(written) => drop(written.send(())),
        }
    }
}

/// Standard error as long as it takes anything.
struct StandardError;

impl Write for StandardError {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if entries().try_send(Entry::Line(line.to_owned())).is_err() {
            lose();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lose() {
    LOST.fetch_add(1, Ordering::Relaxed);
    count_lost();
}

/// Brings the counter up to what was lost: also before there were metrics.
pub(super) fn count_lost() {
    metrics::counter!("outhook_log_lines_lost_total").absolute(LOST.load(Ordering::Relaxed));
}

/// Waits until what was logged is written; not for long, for perhaps nobody reads it. Comes before a process ends.
pub fn flush_logs() {
    let (written, is_written) = sync_channel(1);
    if entries().try_send(Entry::Flush(written)).is_ok() {
        let _ = is_written.recv_timeout(LAST_LINES);
    }
}

/// A line on standard error, written when this returns, or nowhere: `eprintln!` would panic where nothing can be written.
pub fn say(line: Arguments<'_>) {
    let _ = StandardError.write_all(format!("{line}\n").as_bytes());
    flush_logs();
}
