//! How sqlx connects: to the host that takes writes, encrypted as the URL says, with a service's settings.

use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};
use tokio::time::timeout;

use super::pooler::Pooler;
use super::settings::{Settings, Until};
use super::tls::{Encryption, Mode, certificates};
use super::url::{DatabaseUrl, Host};
use super::{CONNECT_TIMEOUT, DatabaseConfig, NO_WRITES};

impl DatabaseConfig {
    pub(super) fn opener(&self, application: &str, settings: &[(&str, &str)], pooler: Pooler) -> Opener {
        let url = self.trusting_url();
        let settings = Settings::of_service(&url.options, settings);
        Opener { application: application.to_owned(), url, settings, pooler }
    }
}

/// Opens connections that are set up as a service needs them.
#[derive(Clone, Debug)]
pub(super) struct Opener {
    application: String,
    url: DatabaseUrl,
    pub settings: Settings,
    pub pooler: Pooler,
}

impl Opener {
    pub(super) async fn open(&self) -> Result<PgConnection, sqlx::Error> {
        let limit = self.url.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
        let connecting = self.url.connect_to_one(|host| self.open_on(host));
        timeout(limit, connecting).await.map_err(|_| timed_out())?
    }

    async fn open_on(&self, host: &Host) -> Result<PgConnection, sqlx::Error> {
        let mut connection = self.connect(host).await?;
        let until = if self.pooler == Pooler::None { Until::SessionEnds } else { Until::TransactionEnds };
        let made = sqlx::raw_sql(AssertSqlSafe(self.settings.statement(until))).fetch_one(&mut connection).await?;
        if made.try_get::<&str, _>("read_only")? == "on" {
            return Err(sqlx::Error::Configuration(NO_WRITES.into()));
        }
        Ok(connection)
    }

    async fn connect(&self, host: &Host) -> Result<PgConnection, sqlx::Error> {
        let options = self.options(host)?;
        let tries = if matches!(host, Host::Socket(..)) { Mode::Disable.tries() } else { self.url.trust.mode.tries() };
        let (last, others) = tries.split_last().expect("each mode has one at least");
        for &encryption in others {
            match options.clone().ssl_mode(sqlx_mode(encryption)).connect().await {
                Err(error) if asks_for_the_other(encryption, &error) => {}
                connected => return connected,
            }
        }
        options.ssl_mode(sqlx_mode(*last)).connect().await
    }

    fn options(&self, host: &Host) -> Result<PgConnectOptions, sqlx::Error> {
        let url = &self.url;
        // Not from `.pgpass`, which the other driver does not read.
        let mut options = PgConnectOptions::new_without_pgpass()
            .username(&url.user)
            .database(&url.database)
            .application_name(&self.application)
            // A pooler refuses it.
            .extra_float_digits(None)
            .statement_cache_capacity(self.pooler.kept_statements())
            .disable_statement_logging();
        if let Some(password) = &url.password {
            options = options.password(password.expose_secret());
        }
        options = match host {
            Host::Tcp(name, port) => options.host(name).port(*port),
            Host::Socket(directory, port) => options.socket(directory).port(*port),
        };
        // None as well, or sqlx would read what PGSSLROOTCERT names.
        options = options.ssl_root_cert_from_pem(Vec::new());
        if let Some(file) = url.trust.root_file() {
            // sqlx would say nothing of a file without any.
            certificates(file).map_err(|error| sqlx::Error::Configuration(error.to_string().into()))?;
            options = options.ssl_root_cert(file);
        }
        if let Some((certificate, key)) = &url.trust.identity {
            options = options.ssl_client_cert(certificate).ssl_client_key(key);
        }
        Ok(options)
    }
}

/// sqlx's name for it: by sqlx's `Require` anybody's certificate will do.
fn sqlx_mode(encryption: Encryption) -> PgSslMode {
    match encryption {
        Encryption::Off => PgSslMode::Disable,
        Encryption::Unverified => PgSslMode::Require,
        Encryption::Chain => PgSslMode::VerifyCa,
        Encryption::Full => PgSslMode::VerifyFull,
    }
}

/// Whether the server wants it the other way: it offers no TLS, or insists on it.
fn asks_for_the_other(encryption: Encryption, error: &sqlx::Error) -> bool {
    match error {
        // sqlx has no other sign of it.
        sqlx::Error::Tls(error) => error.to_string() == "server does not support TLS",
        // `pg_hba.conf` has no entry for what is not encrypted.
        sqlx::Error::Database(error) => encryption == Encryption::Off && error.code().as_deref() == Some("28000"),
        _ => false,
    }
}

pub(super) fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}
