//! A Postgres that speaks TLS, with a certificate of the test's own authority.

use std::path::PathBuf;

use tempfile::TempDir;

use crate::Servers;
use crate::certificates::{Authority, Identity};
use crate::database::{execute, query};
use crate::servers::Server;
use crate::wait::{PATIENCE, wait_until};

/// A Postgres of a test's own that speaks TLS with whoever asks for it. It stops when this is dropped.
pub struct PostgresWithTls {
    /// The server. Its `database_url` says nothing of TLS.
    pub servers: Servers,
    /// Who has issued its first certificate.
    pub authority: Authority,
    files: TempDir,
}

impl PostgresWithTls {
    /// Starts one, with a certificate for `127.0.0.1`.
    pub async fn start() -> Self {
        let servers = Servers::private_only(Server::Postgres).await;
        let authority = Authority::new();
        let files = tempfile::tempdir().expect("there is room for temporary files");
        std::fs::write(files.path().join(CA_FILE), authority.pem()).expect("there is room for it");
        let it = Self { servers, authority, files };
        it.show(&it.authority.issue("127.0.0.1")).await;
        it
    }

    /// Shows this certificate to all who connect from now on. The sessions that there are go on.
    pub async fn show(&self, identity: &Identity) {
        let url = &self.servers.database_url;
        let loaded: f64 = query(url, LOADED).await;
        execute(url, &write("server.crt", &identity.certificate)).await;
        execute(url, &write("server.key", &identity.key)).await;
        execute(url, "ALTER SYSTEM SET ssl = on").await;
        execute(url, "SELECT pg_reload_conf()").await;
        wait_until("the certificate to be shown", PATIENCE, async || query::<f64>(url, LOADED).await > loaded).await;
    }

    /// Its URL, with this behind the question mark.
    #[must_use]
    pub fn url_with(&self, parameters: &str) -> String {
        format!("{}?{parameters}", self.servers.database_url)
    }

    /// The file with the certificate of its authority, in PEM.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.files.path().join(CA_FILE)
    }
}

const CA_FILE: &str = "ca.pem";

/// When the server has read its settings, and with them its certificate, as a new session is told.
const LOADED: &str = "SELECT extract(epoch FROM pg_conf_load_time())::float8";

/// Has the server write a file into its own directory, where it finds its certificate by default. It insists that
/// nobody else may read a key.
fn write(file: &str, pem: &str) -> String {
    format!("COPY (SELECT unnest(string_to_array($${}$$, E'\\n'))) TO PROGRAM 'umask 077 && cat > {file}'", pem.trim())
}
