//! How a process meets its environment: configuration at its start, one sentence at a bad end.

mod secrets;

use std::env::args_os;
use std::error::Error;
use std::ffi::OsString;
use std::fmt::Display;
use std::iter;
use std::path::Path;
use std::process::exit;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use self::secrets::Unreadable;
use crate::service::telemetry::{flush_logs, say};

/// Reads a process's configuration. On a wrong or missing value it prints one sentence that names the
/// variable, and exits with status 2. The value itself is never printed: it may be a secret.
#[must_use]
pub fn read<Config: Parser>() -> Config {
    parse().unwrap_or_else(|error| match error {
        Unreadable::Other(shown) if !shown.use_stderr() => shown.exit(), // --help and --version
        error => refuse::<Config>(said(&error)),
    })
}

/// Reads it once more: a process keeps its variables, but what stands in files may have changed.
///
/// # Errors
/// A sentence, as that of [`read`].
pub fn read_again<Config: Parser>() -> Result<Config, String> {
    parse().map_err(|error| said(&error))
}

fn parse<Config: Parser>() -> Result<Config, Unreadable> {
    let command = secrets::with_files(Config::command());
    let mut arguments = arguments(command.get_name());
    arguments.extend(secrets::arguments(&command, &arguments)?);
    Ok(Config::from_arg_matches(&command.try_get_matches_from(arguments)?)?)
}

/// The arguments of a command: what it was called by, then its own. `outhook-api --help` has them where every program has,
/// in `outhook api --help` its name comes first.
#[must_use]
pub fn arguments(command: &str) -> Vec<OsString> {
    own_arguments(command, args_os().collect())
}

fn own_arguments(command: &str, all: Vec<OsString>) -> Vec<OsString> {
    let is_link = all.first().is_some_and(|called| Path::new(called).file_name() == Some(command.as_ref()));
    match (command.split_once('-'), all.get(1)) {
        (Some((program, name)), Some(first)) if !is_link && first == name => {
            iter::once(format!("{program} {name}").into()).chain(all.into_iter().skip(2)).collect()
        }
        _ => all,
    }
}

fn said(error: &Unreadable) -> String {
    match error {
        Unreadable::Other(error) => sentence(error),
        error => error.to_string(),
    }
}

/// Ends the process as [`read`] does, for values that are wrong only together.
pub fn refuse<Config: Parser>(error: impl Display) -> ! {
    say(format_args!("{}: {error}", Config::command().get_name()));
    exit(2)
}

/// Ends the process: with status 0, or with 1 after a sentence that says what went wrong.
///
/// At once: what its owner did not wait for, such as a name that is being resolved, must not hold it up.
pub fn end<Config: Parser>(outcome: Result<(), impl AsRef<dyn Error>>) -> ! {
    match outcome {
        Ok(()) => {
            flush_logs();
            exit(0)
        }
        Err(error) => {
            say(format_args!("{}: {}", Config::command().get_name(), with_causes(error.as_ref())));
            exit(1)
        }
    }
}

/// What went wrong with all that led to it, each said once: libraries often put a cause's text into their own.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let causes = iter::successors(error.source(), |&cause| cause.source());
    causes
        .map(ToString::to_string)
        .fold(error.to_string(), |said, cause| if said.contains(&cause) { said } else { format!("{said}: {cause}") })
}

/// What is wrong, in one sentence and without the value.
fn sentence(error: &clap::Error) -> String {
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => variable(argument).to_owned(),
        Some(ContextValue::Strings(arguments)) => {
            arguments.iter().map(|argument| variable(argument)).collect::<Vec<_>>().join(", ")
        }
        _ => String::new(),
    };
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    match error.kind() {
        ErrorKind::MissingRequiredArgument => format!("{argument} is not set; see --help"),
        ErrorKind::UnknownArgument => format!("unknown argument {argument}; see --help"),
        ErrorKind::InvalidValue => match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(valid)) => format!("{argument} must be one of: {}", valid.join(", ")),
            _ => format!("{argument} must not be empty"),
        },
        _ if cause.is_empty() => format!("{argument} cannot be used; see --help"),
        _ => format!("{argument} cannot be used: {cause}"),
    }
}

/// `DATABASE_URL` in `--database-url <DATABASE_URL>`.
fn variable(argument: &str) -> &str {
    argument.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or(argument, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use clap::{Parser, ValueEnum};

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot migrate: {0}")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn a_cause_is_said_once() {
        let cause = "x".parse::<u8>().expect_err("it is no number");
        assert_eq!(with_causes(&Outer(cause)), "cannot migrate: invalid digit found in string");
    }

    #[test]
    fn a_command_has_its_own_arguments_however_it_is_called() {
        let own = |all: &[&str]| own_arguments("outhook-api", all.iter().map(OsString::from).collect());
        assert_eq!(own(&["/bin/outhook", "api", "--app-port", "80"]), ["outhook api", "--app-port", "80"]);
        assert_eq!(own(&["/bin/outhook-api", "--app-port", "80"]), ["/bin/outhook-api", "--app-port", "80"]);
        // That one is wrong, and to be refused.
        assert_eq!(own(&["outhook-api", "api"]), ["outhook-api", "api"]);
    }

    #[derive(Clone, ValueEnum)]
    enum Format {
        Json,
        Text,
    }

    #[derive(Parser)]
    struct Sample {
        #[arg(long)]
        app_port: u16,
        #[arg(long, value_parser = |_: &str| Err::<String, _>("it is shorter than 16 bytes"))]
        hmac_secret: Option<String>,
        #[arg(long, value_enum)]
        log_format: Option<Format>,
    }

    fn refused(arguments: &[&str]) -> String {
        let error = Sample::try_parse_from([&["sample"], arguments].concat()).err().expect("the arguments are wrong");
        sentence(&error)
    }

    #[test]
    fn says_what_is_wrong_without_the_value() {
        assert_eq!(refused(&[]), "APP_PORT is not set; see --help");
        assert_eq!(refused(&["--app-port", "eighty"]), "APP_PORT cannot be used: invalid digit found in string");
        assert_eq!(
            refused(&["--app-port", "80", "--hmac-secret", "hunter2"]),
            "HMAC_SECRET cannot be used: it is shorter than 16 bytes"
        );
        assert_eq!(refused(&["--app-port", "80", "--log-format", "xml"]), "LOG_FORMAT must be one of: json, text");
    }
}
