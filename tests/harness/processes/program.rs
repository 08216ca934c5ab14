//! The program and its commands, run to their ends.

use std::path::PathBuf;
use std::process::{ExitStatus, Output, Stdio};

use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::servers::{SERVICE_TIMEOUT, workspace};

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
pub(super) async fn command(program: Program, environment: &[(&str, &str)]) -> Command {
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
