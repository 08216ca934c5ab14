//! Secrets from files: each variable whose value is never shown may instead be named with `_FILE`, as mounted secrets
//! are. The values go the way of arguments to the parser, which no other process sees.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use clap::builder::{Resettable, Str};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, value_parser};

/// Longer than any list of keys; whoever names a device by mistake is told so.
const LONGEST_FILE: u64 = 64 * 1_024;

/// The command with an option for the file of each secret.
pub(super) fn with_files(command: Command) -> Command {
    let files: Vec<Arg> = secrets(&command).map(file_of).collect();
    command.args(files)
}

/// The arguments that say all secrets which stand in files, or in variables with something behind them that does not
/// count. `given` are those of the process.
///
/// # Errors
/// A secret is given twice, or its file cannot be read: a sentence without the value.
pub(super) fn arguments(command: &Command, given: &[OsString]) -> Result<Vec<OsString>, Unreadable> {
    let names: Vec<Secret> = secrets(command).map(Secret::of).collect();
    // Whatever they are, and none of them asked for: what is missing is found when all of them are there.
    let lenient = names.iter().fold(command.clone(), |command, secret| {
        command.mut_arg(&secret.id, |arg| arg.required(false).value_parser(value_parser!(OsString)))
    });
    let matches = lenient.try_get_matches_from(given)?;
    names.iter().filter_map(|secret| secret.argument(&matches).transpose()).collect()
}

/// Why the secrets are not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("{0} and {0}_FILE are both set: only one may be")]
    GivenTwice(String),
    #[error("{0}_FILE cannot be used: {1}")]
    File(String, String),
    /// Something else is wrong, or only help is asked for.
    #[error(transparent)]
    Other(#[from] clap::Error),
}

fn secrets(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| arg.is_hide_env_values_set())
}

fn file_of(secret: &Arg) -> Arg {
    let Secret { id, option, variable } = Secret::of(secret);
    let heading = secret.get_help_heading().map(|heading| Str::from(heading.to_owned()));
    Arg::new(format!("{id}_file"))
        .long(format!("{option}-file"))
        .env(format!("{variable}_FILE"))
        .value_name(format!("{variable}_FILE"))
        .value_parser(value_parser!(OsString))
        .help_heading(Resettable::from(heading))
        .help(format!("File that holds `{variable}` instead; white space at its end does not count"))
}

/// What a secret's argument is called.
struct Secret {
    id: String,
    option: String,
    variable: String,
}

impl Secret {
    fn of(arg: &Arg) -> Self {
        let id = arg.get_id().to_string();
        Self { option: id.replace('_', "-"), variable: id.to_uppercase(), id }
    }

    /// `--option=value`, unless the parser would read the same by itself.
    fn argument(&self, matches: &ArgMatches) -> Result<Option<OsString>, Unreadable> {
        // Compose files pass an empty value for a variable that is not set.
        let value = matches.get_one::<OsString>(&self.id).filter(|value| !value.is_empty());
        let file = matches.get_one::<OsString>(&format!("{}_file", self.id)).filter(|path| !path.is_empty());
        let argument = |value: &str| Some(format!("--{}={}", self.option, value.trim_end()).into());
        match (value, file) {
            (Some(_), Some(_)) => Err(Unreadable::GivenTwice(self.variable.clone())),
            (None, Some(file)) => {
                let read = read(file.as_ref()).map_err(|reason| Unreadable::File(self.variable.clone(), reason))?;
                Ok(argument(&read))
            }
            (Some(value), None) if matches.value_source(&self.id) == Some(ValueSource::EnvVariable) => {
                Ok(value.to_str().and_then(argument))
            }
            _ => Ok(None),
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    // The kind of the error and not its text, which may repeat the path.
    let read = File::open(path).and_then(|file| file.take(LONGEST_FILE + 1).read_to_string(&mut text));
    let bytes = read.map_err(|error| format!("the file cannot be read: {}", error.kind()))?;
    match text.trim_end() {
        "" => Err("the file is empty".to_owned()),
        _ if bytes as u64 > LONGEST_FILE => Err(format!("the file has more than {LONGEST_FILE} bytes")),
        _ => Ok(text),
    }
}
