//! All commands are one program, which is called by its name and theirs, or by a link that has the name that a command's own
//! program had.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use harness::{Stack, processes};
use tokio::net::TcpListener;
use tokio::process::Command;

const COMMANDS: [&str; 7] = ["api", "relay", "worker", "migrate", "check", "receiver", "health"];

async fn outcome(program: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    command.output().await.expect("it can be run")
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("it is text")
}

#[tokio::test]
async fn a_link_with_a_commands_old_name_is_that_command() {
    let program = processes::path().await;
    let folder = tempfile::tempdir().expect("there is room");
    for command in COMMANDS.into_iter().filter(|it| *it != "health") {
        let link = folder.path().join(format!("outhook-{command}"));
        symlink(&program, &link).expect("a link can be made");

        let (old, new) = (outcome(&link, &["--help"]).await, outcome(&program, &[command, "--help"]).await);
        assert!(old.status.success() && new.status.success(), "{command}: {old:?} {new:?}");
        let called =
            text(&new.stdout).replace(&format!("Usage: outhook {command}"), &format!("Usage: outhook-{command}"));
        assert_eq!(text(&old.stdout), called, "{command}");
        assert_ne!(text(&old.stdout), text(&new.stdout), "each says how it was called");

        let (old, new) = (outcome(&link, &["--no-such"]).await, outcome(&program, &[command, "--no-such"]).await);
        assert_eq!((old.status.code(), new.status.code()), (Some(2), Some(2)), "{command}");
        let (old, new) = (text(&old.stderr), text(&new.stderr));
        assert!(old.contains("--no-such") && new.contains("--no-such"), "{command}: {old}{new}");

        // Its own name is no argument of it.
        assert_eq!(outcome(&link, &[command]).await.status.code(), Some(2), "{command}");
    }
}

#[tokio::test]
async fn who_names_no_command_is_told_which_there_are() {
    let program = processes::path().await;
    for arguments in [&[][..], &["deliver"], &["--no-such"], &["", "api"], &["outhook-api"]] {
        let output = outcome(&program, arguments).await;
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        for command in COMMANDS {
            assert!(said.contains(command), "{arguments:?}: {said}");
        }
    }
    let help = outcome(&program, &["--help"]).await;
    assert!(help.status.success());
    for command in COMMANDS {
        assert!(text(&help.stdout).lines().any(|line| line.trim_start().starts_with(command)), "{help:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_what_the_process_says() {
    let stack = Stack::builder().workers(0).start().await;
    let program = processes::path().await;
    let port = stack.client.url().rsplit(':').next().expect("it has a port");

    for path in ["/health", "/ready", "ready"] {
        let output = outcome(&program, &["health", port, path]).await;
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{path}");
    }
    let output = outcome(&program, &["health", port, "/nowhere"]).await;
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said, format!("outhook-health: http://127.0.0.1:{port}/nowhere answers 404\n"));
    stack.finish().await;
}

#[tokio::test]
async fn who_does_not_answer_is_not_well() {
    let program = processes::path().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port().to_string();
    let start = Instant::now();
    let output = outcome(&program, &["health", &port, "/ready"]).await;
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said, format!("outhook-health: http://127.0.0.1:{port}/ready does not answer: timed out\n"));
    assert!((Duration::from_secs(3)..Duration::from_secs(30)).contains(&start.elapsed()), "{:?}", start.elapsed());

    drop(listener);
    let output = outcome(&program, &["health", &port, "/ready"]).await;
    assert_eq!(output.status.code(), Some(1), "nobody listens there");
    for arguments in [&["health"][..], &["health", "65536", "/ready"], &["health", &port]] {
        assert_eq!(outcome(&program, arguments).await.status.code(), Some(2), "{arguments:?}");
    }
}
