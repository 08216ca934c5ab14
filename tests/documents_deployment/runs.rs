//! What runs it: units, manifests, the image and compose.

use std::collections::BTreeSet;

use super::{between, manifests, read, units};
use crate::documents_every_variable::of_help;

/// A service as a unit or a manifest has it.
struct Deployed {
    path: String,
    /// That of `outhook`.
    command: String,
    variables: Vec<(String, String)>,
    /// Seconds that it is waited for when it is to end.
    patience: Option<u64>,
}

impl Deployed {
    fn unit((path, text): (String, String)) -> Self {
        let command = between(&text, "\nExecStart=/usr/local/bin/outhook ", "\n").next().expect("it starts outhook");
        let command = command.split(' ').next().expect("a split has a part").to_owned();
        assert!(path.ends_with(&format!("/outhook-{command}.service")), "{path} starts {command}");
        let assignments = between(&text, "\nEnvironment=", "\n").flat_map(|line| line.split(' '));
        let variables = assignments.filter_map(|it| it.split_once('='));
        let variables: Vec<_> = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let loaded: BTreeSet<&str> = between(&text, "\nLoadCredential=", ":").collect();
        let named: BTreeSet<&str> = variables.iter().filter_map(|(_, value)| value.strip_prefix("%d/")).collect();
        assert_eq!(loaded, named, "{path}: what is loaded, and what is read");
        let patience = between(&text, "\nTimeoutStopSec=", "s\n").next().map(|it| it.parse().expect("it is a number"));
        Self { path, command, variables, patience }
    }

    /// `None` of a manifest that runs nothing.
    fn manifest((path, text): (String, String)) -> Option<Self> {
        let line = between(&text, "command: [", "]").next()?;
        let command = line.strip_prefix("outhook, ").unwrap_or_else(|| panic!("{path} starts {line}"));
        let command = command.split(", ").next().expect("a split has a part").to_owned();
        assert!(path.ends_with(&format!("/{command}.yaml")) || command == "migrate", "{path} starts {command}");
        // As in `- { name: METRICS_ADDR, value: "0.0.0.0:9464" }`.
        let variables = between(&text, "- { name: ", " }").filter_map(|it| it.split_once(", value: "));
        let variables = variables.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect();
        let patience = between(&text, "terminationGracePeriodSeconds: ", "\n").next();
        Some(Self { path, command, variables, patience: patience.map(|it| it.parse().expect("it is a number")) })
    }

    fn seconds(&self, name: &str) -> Option<u64> {
        let given = self.variables.iter().find(|(variable, _)| variable == name).map(|(_, value)| value.clone());
        let known = of_help(&self.command);
        given.or_else(|| known.get(name)?.clone()).map(|it| it.parse().expect("it is a number"))
    }
}

fn deployed() -> Vec<Deployed> {
    let units = units().into_iter().map(Deployed::unit);
    units.chain(manifests().into_iter().filter_map(Deployed::manifest)).collect()
}

#[test]
fn commands_that_are_deployed_know_their_variables_and_are_given_the_time_they_need() {
    let image = read("Dockerfile");
    assert_eq!(between(&image, "install -D -t /programs ", " ").next(), Some("outhook"), "the image has the program");
    let links = between(&image, "for command in ", ";").next().expect("the image has links");
    let links: BTreeSet<&str> = links.split(' ').collect();
    let deployed = deployed();
    assert_eq!(deployed.len(), 8, "a unit and a manifest of each");
    for it in deployed {
        let Deployed { path, command, variables, patience } = &it;
        assert!(links.contains(command.as_str()), "{path}: the image has no outhook-{command}");
        let known = of_help(command);
        assert!(variables.iter().any(|(name, _)| name == "DATABASE_URL_FILE"), "{path}: {variables:?}");
        for (name, value) in variables {
            assert!(known.contains_key(name), "{path}: {command} knows no {name}");
            assert!(!value.is_empty(), "{path}: {name} is empty");
        }
        let Some(timeout) = it.seconds("SHUTDOWN_TIMEOUT_SEC") else { continue };
        let needed = timeout + it.seconds("SHUTDOWN_DELAY_SEC").unwrap_or_default();
        let patience = patience.unwrap_or_else(|| panic!("{path} does not say how long it is waited for"));
        assert!((needed + 5..=needed + 20).contains(&patience), "{path}: {patience} s for {needed} s");
    }
}

#[test]
fn manifests_name_the_image_and_the_ports_that_there_are() {
    let image = read("docker-compose.yml");
    let image = between(&image, "\n  image: ", "\n").next().expect("compose gives it a name");
    for (path, text) in manifests() {
        for named in between(&text, "image: ", "\n") {
            assert_eq!(named, format!("{image}:VERSION"), "{path}");
        }
        for named in between(&text, "images:\n  - name: ", "\n") {
            assert_eq!(named, image, "{path}");
        }
        let Some(deployed) = Deployed::manifest((path.clone(), text.clone())) else { continue };
        let metrics = deployed.variables.iter().find(|(name, _)| name == "METRICS_ADDR");
        let Some((_, port)) = metrics.and_then(|(_, address)| address.rsplit_once(':')) else { continue };
        assert!(text.contains(&format!("{{ name: metrics, containerPort: {port} }}")), "{path}: {port}");
        assert!(text.contains(&format!("prometheus.io/port: \"{port}\"")), "{path}: {port}");
        if let Some(Some(port)) = of_help(&deployed.command).get("APP_PORT") {
            assert!(text.contains(&format!("{{ name: http, containerPort: {port} }}")), "{path}: {port}");
        }
    }
}

#[test]
fn compose_starts_and_asks_what_there_is() {
    let compose = read("docker-compose.yml");
    let commands = between(&compose, "\n    command: outhook ", "\n").filter_map(|line| line.split(' ').next());
    let commands: Vec<&str> = commands.collect();
    assert_eq!(commands, ["migrate", "api", "relay", "worker", "receiver"]);
    for command in commands {
        assert!(!of_help(command).is_empty(), "{command} has no settings");
    }
    let checks: Vec<&str> = between(&compose, "test: [CMD, outhook, ", "]").collect();
    assert_eq!(checks.len(), 4, "{checks:?}");
    assert!(checks.iter().all(|it| it.starts_with("health, \"")), "{checks:?}");
}

#[test]
fn deploying_says_which_secrets_there_are() {
    let page = read("docs/deploying.md");
    for it in deployed() {
        let service = &it.command;
        let row = page.lines().find(|line| line.starts_with(&format!("| `{service}` | ")));
        let row = row.unwrap_or_else(|| panic!("no row for {service}"));
        let listed: BTreeSet<&str> = row.split('`').skip(3).step_by(2).collect();
        let files = it.variables.iter().filter(|(name, _)| name.ends_with("_FILE"));
        let files: BTreeSet<&str> = files.filter_map(|(_, value)| Some(value.rsplit_once('/')?.1)).collect();
        assert_eq!(files, listed, "{}", it.path);
        for (name, value) in &it.variables {
            let Some(secret) = name.strip_suffix("_FILE") else { continue };
            assert!(value.ends_with(&format!("/{}", secret.to_lowercase())), "{}: {name} is {value}", it.path);
        }
    }
}
