//! `DATABASE_URL`: libpq's form, read once, so that both drivers go to the same place and trust the same certificates.

use std::env;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use tokio_postgres::config::Host as TokioHost;
use url::form_urlencoded;

use super::tls::{Roots, Trust};

/// Where a server listens whose URL names no port.
const DEFAULT_PORT: u16 = 5432;

/// Where a server of this machine keeps its socket, as Debian's and as Postgres' own builds have it.
const SOCKET_DIRECTORIES: [&str; 2] = ["/run/postgresql", "/tmp"];

/// What the part after the question mark may say.
const PARAMETERS: &str = "channel_binding, connect_timeout, dbname, host, options, password, port, sslcert, sslkey, \
                          sslmode, sslrootcert, target_session_attrs, user";

/// Where Postgres is, and how to log in there.
#[derive(Clone, Debug)]
pub(super) struct DatabaseUrl {
    /// Tried in turn; one at least.
    pub hosts: Vec<Host>,
    pub user: String,
    pub password: Option<SecretString>,
    pub database: String,
    /// Settings of the session, before our own.
    pub options: Vec<(String, String)>,
    pub trust: Trust,
    /// To open a connection to one of the hosts.
    pub connect_timeout: Option<Duration>,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// A name or an address, without brackets.
    Tcp(String, u16),
    /// The folder of a socket, and the port in its name.
    Socket(PathBuf, u16),
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::read(text, |variable| env::var(variable).ok())
    }
}

impl DatabaseUrl {
    /// What the URL does not say comes from libpq's variables, as `PGPASSWORD`.
    fn read(text: &str, environment: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let no_url = || "it is not a URL like postgres://user:password@host:5432/database".to_owned();
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(no_url());
        }
        let (address, query) = text.split_once('?').unwrap_or((text, ""));
        if query.contains('@') && !address.contains('@') && !query.contains("user=") {
            // What follows would be named, and may be a part of the password.
            return Err("it has a question mark before its host: in a password that is written %3F".to_owned());
        }
        let parameters = Parameters::read(query, &environment)?;
        // Its parser knows several hosts and IPv6; what it does not know was taken out.
        let config = tokio_postgres::Config::from_str(&format!("{address}?{}", parameters.of_address));
        let config = config.map_err(|_| no_url())?;
        let or_variable =
            |value: Option<&str>, variable| value.map(ToOwned::to_owned).or_else(|| environment(variable));
        let user = or_variable(config.get_user(), "PGUSER")
            .or_else(|| whoami::username().ok())
            .ok_or("it names no user, and this process has none")?;
        let password = config.get_password().map(|password| String::from_utf8_lossy(password).into_owned());
        Ok(Self {
            hosts: hosts(&config, &parameters, &environment)?,
            password: password.or_else(|| environment("PGPASSWORD")).map(SecretString::from),
            database: or_variable(config.get_dbname(), "PGDATABASE").unwrap_or_else(|| user.clone()),
            user,
            options: settings(config.get_options().unwrap_or_default())?,
            trust: parameters.trust,
            connect_timeout: config.get_connect_timeout().copied(),
        })
    }
}

/// What stands after the question mark.
struct Parameters {
    trust: Trust,
    /// Hosts and ports, which go before those of the address.
    hosts: Vec<String>,
    ports: Vec<u16>,
    /// What the address's own parser reads.
    of_address: String,
}

impl Parameters {
    fn read(query: &str, environment: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let file = |variable| environment(variable).map(PathBuf::from);
        let mut mode = environment("PGSSLMODE").map(|mode| mode.parse()).transpose()?;
        let mut roots = environment("PGSSLROOTCERT").map(Roots::from);
        let (mut certificate, mut key) = (file("PGSSLCERT"), file("PGSSLKEY"));
        let (mut hosts, mut ports) = (Vec::new(), Vec::new());
        let mut of_address = form_urlencoded::Serializer::new(String::new());
        // libpq takes a plus sign as it stands.
        for (name, value) in form_urlencoded::parse(query.replace('+', "%2B").as_bytes()) {
            match &*name {
                "sslmode" => mode = Some(value.parse()?),
                "sslrootcert" => roots = Some(Roots::from(value.into_owned())),
                "sslcert" => certificate = Some(PathBuf::from(&*value)),
                "sslkey" => key = Some(PathBuf::from(&*value)),
                "target_session_attrs" => needs_writes(&value)?,
                "channel_binding" => needs_no_binding(&value)?,
                "host" => hosts = value.split(',').map(ToOwned::to_owned).collect(),
                "port" => ports = value.split(',').map(port).collect::<Result<_, _>>()?,
                "connect_timeout" | "dbname" | "options" | "password" | "user" => {
                    of_address.append_pair(&name, &value);
                }
                _ => return Err(format!("its parameter {name} is not known; known are {PARAMETERS}")),
            }
        }
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err("sslcert and sslkey go together".to_owned()),
        };
        let trust = Trust { mode: mode.unwrap_or_default(), roots, identity };
        trust.check()?;
        // Read by libpq's rules again, where a plus sign is one.
        Ok(Self { trust, hosts, ports, of_address: of_address.finish().replace('+', "%20") })
    }
}

/// Every service writes, so a server that does not let them is passed over whatever the URL says.
fn needs_writes(target_session_attrs: &str) -> Result<(), String> {
    match target_session_attrs {
        "any" | "read-write" | "primary" => Ok(()),
        other => Err(format!("target_session_attrs={other} is of no use: only a server that takes writes is")),
    }
}

fn needs_no_binding(channel_binding: &str) -> Result<(), String> {
    match channel_binding {
        "disable" | "prefer" => Ok(()),
        _ => Err("channel_binding=require cannot be kept: leave it out; sslmode=verify-full keeps others out as well"
            .to_owned()),
    }
}

fn port(text: &str) -> Result<u16, String> {
    if text.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    text.parse().map_err(|_| "its port is not a number from 0 to 65535".to_owned())
}

fn hosts(
    config: &tokio_postgres::Config,
    parameters: &Parameters,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Host>, String> {
    let default_port = environment("PGPORT").and_then(|port| port.parse().ok()).unwrap_or(DEFAULT_PORT);
    let of_address = || config.get_hosts().iter().map(name).filter(|name| !name.is_empty()).collect();
    let names: Vec<String> = if parameters.hosts.is_empty() { of_address() } else { parameters.hosts.clone() };
    let ports = if parameters.ports.is_empty() { config.get_ports() } else { &parameters.ports };
    if names.is_empty() {
        let port = ports.first().copied().unwrap_or(default_port);
        return Ok(vec![
            environment("PGHOST").map_or_else(|| Host::of_this_machine(port), |host| Host::new(&host, port)),
        ]);
    }
    let port_of = |position| match ports {
        [] => Ok(default_port),
        [port] => Ok(*port),
        ports if ports.len() == names.len() => Ok(ports[position]),
        _ => Err("it has other numbers of hosts and of ports"),
    };
    names.iter().enumerate().map(|(position, name)| Ok(Host::new(name, port_of(position)?))).collect()
}

fn name(host: &TokioHost) -> String {
    match host {
        TokioHost::Tcp(name) => name.clone(),
        TokioHost::Unix(directory) => directory.to_string_lossy().into_owned(),
    }
}

impl Host {
    fn new(name: &str, port: u16) -> Self {
        if name.starts_with('/') { Self::Socket(name.into(), port) } else { Self::Tcp(name.to_owned(), port) }
    }

    /// The socket, where there is one; as libpq does.
    fn of_this_machine(port: u16) -> Self {
        let directory = SOCKET_DIRECTORIES.iter().map(Path::new).find(|directory| socket(directory, port).exists());
        directory.map_or_else(|| Self::new("localhost", port), |directory| Self::Socket(directory.to_owned(), port))
    }
}

/// The file of a server's socket (Postgres manual, `unix_socket_directories`).
fn socket(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// The settings in an `options` of the form `-c name=value -c name=value`.
///
/// They are made by `SET` once the session is there: poolers refuse `options` when it begins.
fn settings(options: &str) -> Result<Vec<(String, String)>, String> {
    let wrong = || "its options must be of the form -c name=value".to_owned();
    let mut words = words(options).into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("-c").or_else(|| word.strip_prefix("--")) {
            Some("") => words.next().ok_or_else(wrong)?,
            Some(setting) => setting.to_owned(),
            None => return Err(wrong()),
        };
        let (name, value) = setting.split_once('=').ok_or_else(wrong)?;
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

/// Words between white space, which stands in a word behind a backslash.
fn words(options: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        let word = words.last_mut().expect("there is one from the start");
        match character {
            '\\' => word.extend(characters.next()),
            space if space.is_whitespace() => words.push(String::new()),
            other => word.push(other),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests;
