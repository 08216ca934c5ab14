//! A service that runs: what it says, and how it ends.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::log::{Log, keep_lines};
use super::program::{Program, command};
use crate::servers::SERVICE_TIMEOUT;
use crate::wait::{PATIENCE, wait_until};

/// A running service. Killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    pub(super) pid: Pid,
    log: Arc<Log>,
    /// What reads the log; at its end, all of it is there.
    reading: TaskTracker,
    /// Where its metrics are, if it serves them.
    metrics_address: Option<String>,
}

impl Process {
    /// Starts a service. `name` is for messages and for the file of its log.
    pub async fn start(name: String, program: Program, environment: &[(&str, &str)]) -> Self {
        Self::start_into(name, program, environment, Stdio::piped()).await
    }

    /// The same with its log into `stderr`; if that is not piped, nobody keeps it.
    pub async fn start_into(name: String, program: Program, environment: &[(&str, &str)], stderr: Stdio) -> Self {
        let mut command = command(program, environment).await;
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().expect("the binary can be started");
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("it was started just now");
        let log = Arc::new(Log::new());
        let reading = TaskTracker::new();
        reading.spawn(keep_lines(child.stdout.take().expect("stdout is piped"), Arc::clone(&log)));
        if let Some(stderr) = child.stderr.take() {
            reading.spawn(keep_lines(stderr, Arc::clone(&log)));
        }
        reading.close();
        let metrics_address = environment.iter().find(|(name, _)| *name == "METRICS_ADDR");
        let metrics_address = metrics_address.map(|(_, address)| (*address).to_owned());
        Self { name, child, pid, log, reading, metrics_address }
    }

    /// The process's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All that it wrote so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lines().join("\n")
    }

    /// Waits until it has logged this. A line is written by a thread of its own, and may come after what it tells of.
    pub async fn says(&self, text: &str) {
        wait_until(&format!("{} to say {text}", self.name), PATIENCE, async || self.log().contains(text)).await;
    }

    /// Waits until a line holds this word: `ready` is not in `already`.
    pub async fn wait_for_word(&mut self, word: &str) {
        self.wait_for_one_of(&[word]).await;
    }

    /// Waits until a line holds one of these words, and returns the first that is there.
    pub async fn wait_for_one_of<'word>(&mut self, words: &[&'word str]) -> &'word str {
        let mut changed = self.log.subscribe();
        let waiting = async {
            loop {
                if let Some(word) = self.log.first_of(words) {
                    return word;
                }
                tokio::select! {
                    _ = changed.changed() => {}
                    status = self.child.wait() => {
                        self.reading.wait().await;
                        let said = self.log.first_of(words);
                        return said.unwrap_or_else(|| panic!("{} ended with {status:?} before {words:?}", self.name));
                    }
                }
            }
        };
        let waited = timeout(SERVICE_TIMEOUT, waiting).await;
        waited.unwrap_or_else(|_| panic!("{} was not {words:?} within {SERVICE_TIMEOUT:?}", self.name))
    }

    /// Where its metrics and probes are: `http://…/metrics`.
    #[must_use]
    pub fn metrics_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.metrics_address.as_deref().expect("the process serves metrics"))
    }

    /// The value of one series, as in `name{label="value"}`; 0 if there is none.
    pub async fn series(&self, series: &str) -> f64 {
        let text = crate::client::fetch(&self.metrics_url("/metrics")).await;
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_default()
    }

    /// The value of a counter, summed over its labels; 0 before it was first raised.
    pub async fn counter(&self, name: &str) -> f64 {
        let text = crate::client::fetch(&self.metrics_url("/metrics")).await;
        let values = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap_or_else(|error| panic!("{} cannot be signalled: {error}", self.name));
    }

    /// Ends it by SIGKILL: nothing of what it was doing is finished.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("a running child can be killed");
        self.reading.wait().await;
    }

    /// Whether it ended by itself.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked")
    }

    /// Its end, and that of its log: the last line may be read when the process is gone already.
    async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.child.wait().await;
        self.reading.wait().await;
        status
    }

    /// Waits for its end.
    pub async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let status = timeout(limit, self.ended()).await;
        let status = status.unwrap_or_else(|_| panic!("{} did not end within {limit:?}", self.name));
        status.expect("a child can be waited for")
    }

    /// Waits until it has passed its kill point; it must not end in any other way.
    pub async fn wait_for_kill_point(&mut self, point: &str, limit: Duration) {
        let status = timeout(limit, self.ended()).await;
        let status = status.unwrap_or_else(|_| panic!("{} did not pass {point} within {limit:?}", self.name));
        let signal = status.expect("a child can be waited for").signal();
        assert_eq!(signal, Some(Signal::KILL.as_raw()), "{} ended before {point}", self.name);
    }

    /// Asks it to end, and insists that it does so in order.
    pub async fn terminate(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait(SERVICE_TIMEOUT).await;
        assert_eq!(status.code(), Some(0), "{} ended with {status} after SIGTERM", self.name);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.log.show(&self.name);
        }
    }
}
