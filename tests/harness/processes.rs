//! The real program, as child processes.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{OnceCell, watch};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::servers::{SERVICE_TIMEOUT, workspace};
use crate::wait::{PATIENCE, wait_until};

/// The unit of the times in /proc on Linux, whatever the kernel's own is (`getconf CLK_TCK`).
const TICKS_PER_SECOND: u32 = 100;

/// Lines of a log that a failed test shows; the whole is in the file that it names.
const LINES_SHOWN: usize = 40;

/// A command of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Takes webhooks.
    Api,
    /// Publishes the outbox.
    Relay,
    /// Delivers.
    Worker,
    /// Migrates the schema.
    Migrate,
    /// Checks the invariants.
    Check,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Relay => "relay",
            Self::Worker => "worker",
            Self::Migrate => "migrate",
            Self::Check => "check",
        }
    }
}

/// The file of the program. The first call builds it.
pub async fn path() -> PathBuf {
    static DIRECTORY: OnceCell<PathBuf> = OnceCell::const_new();
    DIRECTORY.get_or_init(directory).await.join("outhook")
}

/// Where the program is: in `OUTHOOK_BIN_DIR`, or else where it is built here and now.
async fn directory() -> PathBuf {
    if let Some(directory) = std::env::var_os("OUTHOOK_BIN_DIR") {
        return directory.into();
    }
    let test = std::env::current_exe().expect("the test's own path is known");
    let directory = test.ancestors().nth(2).expect("a test is in target/<profile>/deps").to_owned();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let arguments = ["build", "--quiet", "--workspace", "--bins", "--features", "outbox/kill-points"];
    cargo.args(arguments).current_dir(workspace());
    if directory.ends_with("release") {
        cargo.arg("--release");
    }
    // What cargo tells this test about its package would make build scripts run anew.
    for (name, _) in std::env::vars_os() {
        let about_us = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"];
        if about_us.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
    let status = cargo.status().await.expect("cargo can be run");
    assert!(status.success(), "cargo build ended with {status}");
    directory
}

/// Runs a program to its end.
pub async fn output(program: Program, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    let output = command(program, environment).await.args(arguments).output();
    timeout(SERVICE_TIMEOUT, output).await.expect("the program ends in time").expect("it can be run")
}

/// The end of a program whose words go there.
pub async fn status_into(
    program: Program,
    environment: &[(&str, &str)],
    stdout: impl Into<Stdio>,
    stderr: impl Into<Stdio>,
) -> ExitStatus {
    let mut command = command(program, environment).await;
    let status = command.stdout(stdout).stderr(stderr).status();
    timeout(SERVICE_TIMEOUT, status).await.expect("the program ends in time").expect("it can be run")
}

/// Runs a program to its end, which must be a good one.
pub async fn run(program: Program, environment: &[(&str, &str)], arguments: &[&str]) {
    let output = output(program, environment, arguments).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program:?} ended with {}:\n{said}", output.status);
}

/// Nothing of the caller's environment gets through, so that a test means the same everywhere.
async fn command(program: Program, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(path().await);
    command
        .arg(program.name())
        .env_clear()
        .env("RUST_BACKTRACE", "1")
        .env("NO_COLOR", "1")
        .env("RUST_LOG", std::env::var("OUTHOOK_TEST_LOG").unwrap_or_else(|_| "info".to_owned()))
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The processor time that a process of this machine has used so far.
#[must_use]
pub fn processor_time_of(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // After the name in brackets: the 12th and the 13th field, user and system time (proc(5)).
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let ticks: u32 = fields.map(|field| field.parse::<u32>().expect("a number of ticks")).sum();
    Duration::from_secs(1) * ticks / TICKS_PER_SECOND
}

/// A running service. Killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    pid: Pid,
    log: Arc<Log>,
    /// What reads the log; at its end, all of it is there.
    reading: TaskTracker,
    /// Where its metrics are, if it serves them.
    metrics_address: Option<String>,
}

struct Log {
    lines: Mutex<Vec<String>>,
    /// Raised at every line; the value is of no interest.
    changed: watch::Sender<()>,
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
        let log = Arc::new(Log { lines: Mutex::default(), changed: watch::Sender::new(()) });
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
        let mut changed = self.log.changed.subscribe();
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

    /// The processor time that it has used so far.
    #[must_use]
    pub fn processor_time(&self) -> Duration {
        processor_time_of(self.pid.as_raw_nonzero().get())
    }

    /// The most memory that it has had so far, in bytes.
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid.as_raw_nonzero())).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak.and_then(|peak| peak.parse::<u64>().ok()).expect("Linux says it in kB (proc(5))") * 1_024
    }

    /// Lets it open only so many files more than it has open now: sockets are files too. Lifted by
    /// [`Self::lift_file_limit`].
    pub fn limit_files_to_open(&self, more: u64) {
        self.limit_files(self.open_files() + more);
    }

    /// Files that it has open, sockets among them.
    #[must_use]
    pub fn open_files(&self) -> u64 {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid.as_raw_nonzero())).expect("the process runs");
        open.count() as u64
    }

    /// Lets it open as many files as usual again.
    pub fn lift_file_limit(&self) {
        self.limit_files(1_024);
    }

    fn limit_files(&self, files: u64) {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current: Some(files), maximum };
        prlimit(Some(self.pid), Resource::Nofile, limit).expect("one's own child can be limited");
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap_or_else(|error| panic!("{} cannot be signalled: {error}", self.name));
    }

    /// Whether it stands still after SIGSTOP.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero())).expect("it runs");
        // After the name in brackets: its state (proc(5)).
        stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('T')
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
            self.show_log();
        }
    }
}

impl Process {
    fn show_log(&self) {
        let lines = self.log.lines();
        let directory = workspace().join("target/failed");
        let path = directory.join(format!("{}.log", self.name));
        let written = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&path, lines.join("\n")));
        let whole = written.map_or_else(|error| error.to_string(), |()| path.display().to_string());
        let last = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
        eprintln!("---- {} (all of it: {whole}) ----\n{}", self.name, last.join("\n"));
    }
}

impl Log {
    /// The first word of its lines that is one of these.
    fn first_of<'word>(&self, words: &[&'word str]) -> Option<&'word str> {
        let lines = self.lines();
        let mut said = lines.iter().flat_map(|line| line.split(|it: char| !it.is_alphanumeric() && it != '_'));
        said.find_map(|said| words.iter().copied().find(|word| *word == said))
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn keep_lines(stream: impl AsyncRead + Unpin, log: Arc<Log>) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        log.changed.send_replace(());
    }
}
