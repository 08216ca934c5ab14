//! Every form of a URL leads all programs to the same Postgres, whichever driver they have.

use std::net::SocketAddr;
use std::path::Path;

use harness::database::Database;
use harness::processes::output;
use harness::{Program, Servers};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinHandle;

/// Postgres as it would be at another address.
async fn at_ipv6(postgres: SocketAddr) -> Option<(SocketAddr, JoinHandle<()>)> {
    // Not every machine has it.
    let listener = TcpListener::bind("[::1]:0").await.ok()?;
    let address = listener.local_addr().expect("a bound socket has an address");
    let serving = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(postgres).await.expect("Postgres listens");
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    Some((address, serving))
}

/// The same at a socket, under the name that port 5432 gives it.
fn at_socket(directory: &Path, postgres: SocketAddr) -> JoinHandle<()> {
    let listener = UnixListener::bind(directory.join(".s.PGSQL.5432")).expect("a short path");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(postgres).await.expect("Postgres listens");
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    })
}

/// By the one driver and by the other.
async fn assert_both_get_there(environment: &[(&str, &str)]) {
    for program in [Program::Migrate, Program::Check] {
        let ended = output(program, environment, &[]).await;
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{program:?} with {environment:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_form_gets_there() {
    let servers = Servers::shared().await;
    let database = Database::create(servers).await;
    let (server, name) = database.url.rsplit_once('/').expect("a URL names a database");
    let postgres = servers.postgres_address();
    let sockets = tempfile::tempdir().expect("there is room for temporary files");
    let directory = sockets.path().to_str().expect("a name in UTF-8");
    let socket = at_socket(sockets.path(), postgres);
    // It takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let silent_address = silent.local_addr().expect("a bound socket has an address");
    let mut urls = vec![
        format!("postgresql://outhook@{postgres}/{name}"),
        format!("postgres:///{name}?user=outhook&host={directory}"),
        format!("postgres://outhook@{}/{name}", directory.replace('/', "%2F")),
        format!("postgres://outhook@{silent_address},{postgres}/{name}"),
        format!("{server}/{name}?connect_timeout=3&target_session_attrs=primary&options=-c%20search_path%3Dnowhere"),
    ];
    let ipv6 = at_ipv6(postgres).await;
    urls.extend(ipv6.as_ref().map(|(address, _)| format!("postgres://outhook@{address}/{name}")));
    for url in &urls {
        assert_both_get_there(&[("DATABASE_URL", url)]).await;
    }
    let (host, port) = (postgres.ip().to_string(), postgres.port().to_string());
    let variables = [("PGHOST", &*host), ("PGPORT", &port), ("PGUSER", "outhook"), ("PGDATABASE", name)];
    assert_both_get_there(&[&variables[..], &[("DATABASE_URL", "postgres://")]].concat()).await;
    socket.abort();
    database.drop().await;
}

#[tokio::test]
async fn what_is_not_known_is_named_before_anything_is_done() {
    let missing = "postgres://u@127.0.0.1/d?sslrootcert=/nowhere/ca.pem";
    for (variable, value, words) in [
        ("DATABASE_URL", "postgres://u:hunter2@127.0.0.1/d?sslmod=require", "its parameter sslmod is not known"),
        ("DATABASE_URL", "postgres://u:hunter2@127.0.0.1/d?sslmode=on", "its sslmode is none of"),
        ("DATABASE_URL", missing, "cannot use the certificates of /nowhere/ca.pem"),
        ("DATABASE_DIRECT_URL", "hunter2", "it is not a URL like"),
        ("DATABASE_CA_FILE", "/nowhere/ca.pem", "the file cannot be read: entity not found"),
    ] {
        let mut environment = vec![(variable, value)];
        if variable != "DATABASE_URL" {
            environment.push(("DATABASE_URL", "postgres://u@127.0.0.1/d"));
        }
        let ended = output(Program::Migrate, &environment, &[]).await;
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("{variable} cannot be used: {words}")), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}
