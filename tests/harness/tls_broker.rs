//! A RabbitMQ that also speaks TLS, and insists on certificates of its clients.

use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use crate::certificates::Authority;
use crate::servers::{Servers, free_port};

/// A broker of one's own.
pub struct TlsBroker {
    /// It. Its own URL is that of the port without TLS.
    pub servers: Servers,
    /// The port for TLS.
    pub port: u16,
    /// The authority of its certificate, which is for `localhost`, and of those that clients must show.
    pub authority: Authority,
    directory: TempDir,
}

impl TlsBroker {
    /// Starts one.
    pub async fn start() -> Self {
        let (authority, port) = (Authority::new(), free_port());
        let directory = tempfile::tempdir().expect("there is room for temporary files");
        // The broker is another user.
        let readable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), readable).expect("it is one's own");
        let identity = authority.issue("localhost");
        let path = |name: &str, text: &str| write(&directory, name, text);
        let lines = [
            format!("listeners.ssl.1 = 127.0.0.1:{port}"),
            format!("ssl_options.cacertfile = {}", path("ca.pem", authority.pem())),
            format!("ssl_options.certfile = {}", path("broker.pem", &identity.certificate)),
            format!("ssl_options.keyfile = {}", path("broker.key", &identity.key)),
            "ssl_options.verify = verify_peer".to_owned(),
            "ssl_options.fail_if_no_peer_cert = true".to_owned(),
        ];
        let servers = Servers::private_broker(lines.join("\n")).await;
        Self { servers, port, authority, directory }
    }

    /// Its URL with TLS, for the tests' own user.
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqps://guest:guest@localhost:{}/%2f", self.port)
    }

    /// Writes a file, and returns its path.
    #[must_use]
    pub fn file(&self, name: &str, text: &str) -> String {
        write(&self.directory, name, text)
    }
}

fn write(directory: &TempDir, name: &str, text: &str) -> String {
    let path = directory.path().join(name);
    std::fs::write(&path, text).expect("there is room for a file");
    path.into_os_string().into_string().expect("the path is text")
}
