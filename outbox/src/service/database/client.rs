//! tokio-postgres' connections: for what needs a session of its own.

use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, SimpleQueryMessage, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::{debug, warn};

use super::settings::{Settings, Until};
use super::tls::{Encryption, Mode};
use super::url::{DatabaseUrl, Host};
use super::{CONNECT_TIMEOUT, DatabaseConfig, DatabaseError};

/// The kernel of this machine gives up a peer that is gone after about as long.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

impl DatabaseConfig {
    /// A single connection, with the server's own settings: for an administrator's work.
    ///
    /// # Errors
    /// Postgres cannot be reached in time, refuses, or takes no writes.
    pub async fn connect(&self, application: &str) -> Result<Client, DatabaseError> {
        let url = self.direct().trusting_url();
        let settings = Settings::of_administrator(&url.options);
        open(&url, application, &settings, || {}).await
    }

    /// A single connection of a service, with the same settings as those of a pool.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_service(&self, application: &str) -> Result<Client, DatabaseError> {
        self.connect_listening(application, || {}).await
    }

    /// The same, which calls `on_notification` at each NOTIFY it hears, and once more when it ends, so that nobody
    /// waits on a dead line.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_listening(
        &self,
        application: &str,
        on_notification: impl Fn() + Clone + Send + Sync + 'static,
    ) -> Result<Client, DatabaseError> {
        let url = self.direct().trusting_url();
        let settings = Settings::of_service(&url.options, &[]);
        open(&url, application, &settings, on_notification).await
    }
}

async fn open(
    url: &DatabaseUrl,
    application: &str,
    settings: &Settings,
    on_notification: impl Fn() + Clone + Send + Sync + 'static,
) -> Result<Client, DatabaseError> {
    url.trust.needs_no_more()?;
    let limit = url.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
    let opening = url.connect_to_one(async |host: &Host| {
        let client = connect(url, host, application, on_notification.clone()).await?;
        prepare(&client, settings).await?;
        Ok(client)
    });
    timeout(limit, opening).await.map_err(|_| DatabaseError::Timeout)?
}

async fn prepare(client: &Client, settings: &Settings) -> Result<(), DatabaseError> {
    let made = client.simple_query(&settings.statement(Until::SessionEnds)).await?;
    let read_only = made.iter().any(|message| match message {
        SimpleQueryMessage::Row(row) => row.get("read_only") == Some("on"),
        _ => false,
    });
    if read_only { Err(DatabaseError::NoWrites) } else { Ok(()) }
}

async fn connect(
    url: &DatabaseUrl,
    host: &Host,
    application: &str,
    on_notification: impl Fn() + Send + 'static,
) -> Result<Client, DatabaseError> {
    let mode = if matches!(host, Host::Socket(..)) { Mode::Disable } else { url.trust.mode };
    let (last, others) = mode.tries().split_last().expect("each mode has one at least");
    let mut config = config(url, host, application);
    for &encryption in others {
        // Which goes on without when the server offers no TLS.
        config.ssl_mode(if encryption == Encryption::Off { SslMode::Disable } else { SslMode::Prefer });
        let connecting = config.connect(MakeRustlsConnect::new(url.trust.client_config(encryption)?)).await;
        match connecting {
            Err(error) if encryption == Encryption::Off && refuses_what_is_not_encrypted(&error) => {}
            connected => return Ok(drive_in_background(connected?, on_notification)),
        }
    }
    config.ssl_mode(if *last == Encryption::Off { SslMode::Disable } else { SslMode::Require });
    let connected = config.connect(MakeRustlsConnect::new(url.trust.client_config(*last)?)).await?;
    Ok(drive_in_background(connected, on_notification))
}

fn config(url: &DatabaseUrl, host: &Host, application: &str) -> Config {
    let mut config = Config::new();
    match host {
        Host::Tcp(name, port) => config.host(name).port(*port),
        Host::Socket(directory, port) => config.host_path(directory).port(*port),
    };
    if let Some(password) = &url.password {
        config.password(password.expose_secret());
    }
    config
        .user(&url.user)
        .dbname(&url.database)
        .application_name(application)
        .keepalives_idle(PEER_TIMEOUT)
        .tcp_user_timeout(PEER_TIMEOUT);
    config
}

/// `pg_hba.conf` has no entry for it.
fn refuses_what_is_not_encrypted(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}

fn drive_in_background<Tls>(
    (client, connection): (Client, Connection<Socket, Tls>),
    on_notification: impl Fn() + Send + 'static,
) -> Client
where
    Tls: tokio_postgres::tls::TlsStream + Unpin + Send + 'static,
{
    tokio::spawn(drive(connection, on_notification));
    client
}

/// Moves the connection's bytes until it ends, and passes on what the server warns of.
async fn drive<Tls>(mut connection: Connection<Socket, Tls>, on_notification: impl Fn())
where
    Tls: tokio_postgres::tls::TlsStream + Unpin,
{
    loop {
        match std::future::poll_fn(|context| connection.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notification(_))) => on_notification(),
            Some(Ok(AsyncMessage::Notice(notice))) if notice.parsed_severity() == Some(Severity::Warning) => {
                warn!("Postgres: {}", notice.message());
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                debug!(%error, "a connection to Postgres ended");
                break;
            }
            None => break,
        }
    }
    on_notification();
}
