//! nginx as a receiver.

use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::certificates::Identity;
use crate::servers::free_port;
use crate::wait_until;

/// It answers every request with 200. It ends when this is dropped.
pub struct Nginx {
    port: u16,
    _process: Child,
    _files: TempDir,
}

impl Nginx {
    /// Starts it. `protocol` is added to its `listen`, and `limits` are more of its settings.
    pub async fn start(identity: &Identity, protocol: &str, limits: &str) -> Self {
        let files = tempfile::tempdir().expect("there is room for temporary files");
        let port = free_port();
        for (name, text) in [
            ("certificate.pem", &identity.certificate),
            ("key.pem", &identity.key),
            ("nginx.conf", &configuration(port, protocol, limits)),
        ] {
            std::fs::write(files.path().join(name), text).expect("there is room for it");
        }
        let mut command = Command::new("nginx");
        command.arg("-p").arg(files.path()).args(["-c", "nginx.conf", "-e", "error.log"]);
        // Debian keeps servers out of an ordinary user's PATH.
        command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
        let process = command.stdin(Stdio::null()).kill_on_drop(true).spawn().expect("scripts/test installs nginx");
        wait_until("nginx to listen", Duration::from_secs(10), async || {
            TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        Self { port, _process: process, _files: files }
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}/hook", self.port)
    }
}

/// One process, and no file outside its directory.
fn configuration(port: u16, protocol: &str, limits: &str) -> String {
    let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {name};"));
    let places = places.join(" ");
    format!(
        "daemon off;
master_process off;
pid nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    {places}
    server {{
        listen 127.0.0.1:{port} ssl{protocol};
        ssl_certificate certificate.pem;
        ssl_certificate_key key.pem;
        {limits}
        location / {{ return 200; }}
    }}
}}
"
    )
}
