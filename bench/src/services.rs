//! The real program, as child processes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Waits this long at most for a service to start or stop.
const SERVICE_TIMEOUT: Duration = Duration::from_mins(1);

const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What a service is started with, besides nothing: the caller's environment stays outside.
pub(crate) type Environment = Vec<(String, String)>;

/// A running service. Killed when dropped.
pub(crate) struct Service {
    name: &'static str,
    child: Child,
    log: PathBuf,
    /// Its process.
    pub pid: u32,
}

impl Service {
    /// Starts a command of the program and returns when it says that it is ready. Its log is what it writes by default, for
    /// that is part of its work.
    pub(crate) async fn start(
        programs: &Path,
        name: &'static str,
        environment: &Environment,
        log: PathBuf,
    ) -> anyhow::Result<Self> {
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = Command::new(programs.join("outhook"))
            .arg(name)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("outhook {name} cannot be started: build the release binaries first"))?;
        let pid = child.id().context("the process has ended")?;
        let mut service = Self { name, child, log, pid };
        service.wait_until_ready().await?;
        Ok(service)
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + SERVICE_TIMEOUT;
        while !std::fs::read_to_string(&self.log)?.contains(" ready: ") {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} before it was ready; its log is {}", self.name, self.log.display());
            }
            ensure!(Instant::now() < deadline, "{} was not ready within {SERVICE_TIMEOUT:?}", self.name);
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// Asks it to end, and waits until it did.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let pid = Pid::from_raw(self.pid.cast_signed()).context("a process id is not 0")?;
        kill_process(pid, Signal::TERM).with_context(|| format!("{} has ended by itself", self.name))?;
        let ended = timeout(SERVICE_TIMEOUT, self.child.wait()).await;
        let status = ended.with_context(|| format!("{} did not end within {SERVICE_TIMEOUT:?}", self.name))??;
        ensure!(status.success(), "{} ended with {status}; its log is {}", self.name, self.log.display());
        Ok(())
    }
}

/// Runs a program to its end and returns what it printed.
pub(crate) async fn output(command: &mut Command, limit: Duration) -> anyhow::Result<String> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let ended = timeout(limit, command.stdin(Stdio::null()).kill_on_drop(true).output()).await;
    let output = ended.with_context(|| format!("{name} did not end in time"))??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} ended with {}: {said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
