//! The clients that callers have, with the connections that they keep: a request that is refused costs the next one nothing.

use std::path::Path;
use std::time::Duration;

use harness::{Stack, Webhook, report};
use tokio::process::Command;
use tokio::time::timeout;

/// A client posts the first file, which is too long, and the second, which is good, this often in turn.
const TURNS: usize = 5;

/// Prints the status of each answer.
const PYTHON: &str = r#"
import http.client, sys
host, signature, long, good = sys.argv[1:]
connection = http.client.HTTPConnection(host, timeout=20)
for _ in range(5):
    for path in long, good:
        connection.request("POST", "/webhooks", open(path, "rb").read(),
                           {"Content-Type": "application/json", "X-Signature": signature})
        answer = connection.getresponse()
        answer.read()
        print(answer.status)
"#;

/// The same with the libraries that most callers have; they may be missing.
const REQUESTS: &str = r#"
import sys
try:
    import requests
except ImportError:
    sys.exit(77)
host, signature, long, good = sys.argv[1:]
session = requests.Session()
for _ in range(5):
    for path in long, good:
        answer = session.post(f"http://{host}/webhooks", data=open(path, "rb").read(), timeout=20,
                              headers={"Content-Type": "application/json", "X-Signature": signature})
        print(answer.status_code)
"#;
const AIOHTTP: &str = r#"
import asyncio, sys
try:
    import aiohttp
except ImportError:
    sys.exit(77)
host, signature, long, good = sys.argv[1:]
async def main():
    async with aiohttp.ClientSession() as session:
        for _ in range(5):
            for path in long, good:
                headers = {"Content-Type": "application/json", "X-Signature": signature}
                async with session.post(f"http://{host}/webhooks", data=open(path, "rb").read(), headers=headers) as answer:
                    await answer.read()
                    print(answer.status)
asyncio.run(main())
"#;

/// What they end with where the library is missing.
const MISSING: i32 = 77;

/// Node's own `fetch`, which is undici.
const NODE: &str = r#"
const [host, signature, long, good] = process.argv.slice(1);
const { readFileSync } = require("fs");
(async () => {
  for (let turn = 0; turn < 5; turn++) {
    for (const path of [long, good]) {
      const headers = { "Content-Type": "application/json", "X-Signature": signature };
      const answer = await fetch(`http://${host}/webhooks`, { method: "POST", headers, body: readFileSync(path) });
      await answer.text();
      console.log(answer.status);
    }
  }
})();
"#;

fn curl(host: &str, signature: &str, long: &str, good: &str) -> Command {
    let mut command = Command::new("curl");
    for turn in 0..TURNS {
        for path in [long, good] {
            if turn > 0 || path == good {
                command.arg("--next");
            }
            command.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}\n", "--max-time", "20"]);
            // Without it, it would ask whether to send the body at all.
            command.args(["--header", "Expect:", "--header", "Content-Type: application/json"]);
            command.args(["--header", &format!("X-Signature: {signature}"), "--data-binary", &format!("@{path}")]);
            command.arg(format!("http://{host}/webhooks"));
        }
    }
    command
}

#[tokio::test]
async fn after_a_body_that_was_too_long_comes_a_good_one() {
    let stack = Stack::builder().relays(0).workers(0).start().await;
    let files = tempfile::tempdir().expect("there is room for temporary files");
    let path = |name: &str| files.path().join(name).into_os_string().into_string().expect("the path is text");
    let (long, good) = (path("long"), path("good"));
    let request = Webhook::to("https://example.com/hook").body();
    std::fs::write(&long, "x".repeat(4 * 1_024 * 1_024)).expect("there is room for it");
    std::fs::write(&good, &request).expect("there is room for it");
    let (host, signature) = (stack.client.url().trim_start_matches("http://"), stack.client.sign(request.as_bytes()));
    let scripted = |program: &str, flag: &str, script: &str| {
        let mut command = Command::new(program);
        command.args([flag, script, host, &signature, &long, &good]);
        command
    };
    let mut tried = 0;
    for mut command in [
        curl(host, &signature, &long, &good),
        scripted("python3", "-c", PYTHON),
        scripted("python3", "-c", REQUESTS),
        scripted("python3", "-c", AIOHTTP),
        scripted("node", "--eval", NODE),
    ] {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        let is_there = |folder: &str| Path::new(folder).join(&name).exists();
        if !std::env::var("PATH").unwrap_or_default().split(':').any(is_there) {
            report(&format!("skipped: {name} is not installed"));
            continue;
        }
        let output = timeout(Duration::from_mins(1), command.kill_on_drop(true).output()).await;
        let output = output.expect("it ends").expect("it runs");
        if output.status.code() == Some(MISSING) {
            report(&format!("skipped: a library of {name} is not installed"));
            continue;
        }
        let statuses = String::from_utf8_lossy(&output.stdout);
        let expected = "413\n202\n".repeat(TURNS);
        assert_eq!(statuses, expected, "{name}: {}", String::from_utf8_lossy(&output.stderr));
        tried += 1;
    }
    report(&format!("{tried} kinds of clients"));
    assert!(tried > 0, "there is no client at all");
    let accepted = i64::try_from(tried * TURNS).expect("a small number");
    assert_eq!(stack.jobs().await, accepted);
}
