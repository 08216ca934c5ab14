//! How a process meets its environment: configuration at its start, one sentence at a bad end.

use std::fmt::Display;
use std::process::exit;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Reads a process's configuration. On a wrong or missing value it prints one sentence that names the
/// variable, and exits with status 2. The value itself is never printed: it may be a secret.
#[must_use]
pub fn read<Config: Parser>() -> Config {
    Config::try_parse().unwrap_or_else(|error| {
        if !error.use_stderr() {
            error.exit(); // --help and --version
        }
        eprintln!("{}: {}", Config::command().get_name(), sentence(&error));
        exit(2)
    })
}

/// Ends the process as [`read`] does, for values that are wrong only together.
pub fn refuse<Config: Parser>(error: impl Display) -> ! {
    eprintln!("{}: {error}", Config::command().get_name());
    exit(2)
}

/// Ends the process: with status 0, or with 1 after a sentence that says what went wrong.
///
/// At once: what its owner did not wait for, such as a name that is being resolved, must not hold it up.
pub fn end<Config: Parser>(outcome: Result<(), impl Display>) -> ! {
    match outcome {
        Ok(()) => exit(0),
        Err(error) => {
            eprintln!("{}: {error:#}", Config::command().get_name());
            exit(1)
        }
    }
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
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
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
