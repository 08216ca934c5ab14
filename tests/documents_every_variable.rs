//! `.env.example` lists every variable of every service, with the default that the service has, and `docs/http.md` every
//! error of the api.

use std::collections::BTreeMap;
use std::process::Command;

/// Variables and their defaults, `None` without one, as a command's `--help` shows them.
pub(crate) fn of_help(command: &str) -> BTreeMap<String, Option<String>> {
    let test = std::env::current_exe().expect("the test's own path is known");
    let directory = test.ancestors().nth(2).expect("a test is in target/<profile>/deps");
    let mut outhook = Command::new(directory.join("outhook"));
    let output = outhook.args([command, "--help"]).env_clear().output().expect("scripts/test built it");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    let help = String::from_utf8(output.stdout).expect("help is text");
    let mut variables = BTreeMap::new();
    let mut last = None;
    for line in help.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("[env: ") {
            let name = name.trim_end_matches(']').trim_end_matches('=').to_owned();
            variables.insert(name.clone(), None);
            last = Some(name);
        } else if let (Some(default), Some(name)) = (line.strip_prefix("[default: "), &last) {
            variables.insert(name.clone(), Some(default.trim_end_matches(']').to_owned()));
        }
    }
    variables
}

/// The same, as `.env.example` has them, and whether they are commented out.
fn of_example() -> BTreeMap<String, (String, bool)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../.env.example");
    let text = std::fs::read_to_string(path).expect(".env.example is there");
    let variable = |line: &str| {
        let (line, commented) = line.strip_prefix("# ").map_or((line, false), |line| (line, true));
        let (name, value) = line.split_once('=')?;
        let is_name = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
        is_name.then(|| (name.to_owned(), (value.to_owned(), commented)))
    };
    text.lines().filter_map(variable).collect()
}

#[test]
fn the_example_is_the_whole_truth() {
    let example = of_example();
    let mut known = BTreeMap::new();
    for command in ["api", "relay", "worker", "migrate", "receiver"] {
        known.extend(of_help(command));
    }
    let (listed, existing): (Vec<_>, Vec<_>) = (example.keys().collect(), known.keys().collect());
    assert_eq!(listed, existing, ".env.example and --help name different variables");
    for (name, default) in known {
        let Some(default) = default else { continue };
        assert_eq!(example[&name].0, default, "the default of {name}");
        assert!(!example[&name].1, "{name} has a default, so its line needs no comment sign");
    }
}

#[test]
fn every_error_of_the_api_is_explained() {
    let read = |path: &str| {
        let path = format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let (source, page) = (read("api/src/error.rs"), read("docs/http.md"));
    // As in `Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),`.
    let codes = source.lines().filter_map(|line| line.split_once("(StatusCode::")?.1.split('"').nth(1));
    let codes: Vec<&str> = codes.collect();
    assert!(codes.len() > 15, "{codes:?}");
    for code in codes {
        assert!(page.lines().any(|line| line.starts_with("| ") && line.contains(&format!("`{code}`"))), "{code}");
    }
}
