//! What it ran on: without that a figure says nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use tokio_postgres::Client;

use crate::servers::workspace;

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub started: String,
    pub commit: String,
    pub processors: usize,
    pub processor: String,
    pub memory_mebibytes: u64,
    pub kernel: String,
    /// Type of the file system that Postgres and RabbitMQ write to.
    pub file_system: String,
    pub postgres: String,
    /// Runnable processes before the first measurement: more than 0 or 1 means that others were busy.
    pub load_before: String,
}

impl Machine {
    pub(crate) async fn look_at(directory: &Path, client: &Client) -> anyhow::Result<Self> {
        let postgres: String = client.query_one("SELECT current_setting('server_version')", &[]).await?.get(0);
        let processors = std::thread::available_parallelism()?.get();
        Ok(Self {
            started: outbox::service::clock::now().format(&Rfc3339)?,
            commit: said(Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(workspace())),
            processors,
            processor: field("/proc/cpuinfo", "model name"),
            memory_mebibytes: kibibytes(&field("/proc/meminfo", "MemTotal")) / 1_024,
            kernel: first_line("/proc/sys/kernel/osrelease"),
            file_system: said(Command::new("stat").args(["--file-system", "--format=%T"]).arg(directory)),
            postgres,
            load_before: first_line("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        })
    }

    /// For the head of the report.
    pub(crate) fn sentences(&self) -> String {
        let warning = if self.file_system == "tmpfs" { " — IN MEMORY: commits cost nothing here" } else { "" };
        format!(
            "{} processors ({}), {} MiB of memory, Linux {}, Postgres {}, {}{warning}\n\
             Everything runs on these {} processors: the services, Postgres, RabbitMQ, the load and the receiver.\n\
             Started {}, commit {}, load average before {}",
            self.processors,
            self.processor,
            self.memory_mebibytes,
            self.kernel,
            self.postgres,
            self.file_system,
            self.processors,
            self.started,
            self.commit,
            self.load_before,
        )
    }
}

/// What a small command prints; nothing when it cannot be run, for this is only a caption.
fn said(command: &mut Command) -> String {
    command.output().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

/// The value behind `name :` in a file of such lines.
fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().filter_map(|line| line.split_once(':')).find(|(found, _)| found.trim() == name);
    line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

fn kibibytes(text: &str) -> u64 {
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
