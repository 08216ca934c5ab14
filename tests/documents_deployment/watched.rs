//! What is watched: the metrics that alerts and the dashboard ask for, and the probes.

use std::collections::BTreeSet;
use std::process::Command;

use harness::client::{fetch, http_client, send};
use harness::{PATIENCE, Stack};
use serde_json::{Value, json};

use super::{between, manifests, read};
use crate::documents_every_metric::counted_by;

const ALERTS: &str = "deploy/prometheus/alerts.yml";
const ALERTS_TESTS: &str = "deploy/prometheus/alerts.test.yml";
const DASHBOARD: &str = "deploy/grafana/outhook.json";

/// A metric where it is asked for, with what is asked of its labels.
struct Selector {
    name: String,
    /// Each with the values that it may have.
    labels: Vec<(String, Vec<String>)>,
}

fn selectors(text: &str) -> Vec<Selector> {
    let starts = text.match_indices("outhook_").map(|(start, _)| &text[start..]);
    let selector = |rest: &str| {
        let end = rest.find(|it: char| !it.is_ascii_alphanumeric() && it != '_').unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let matchers =
            rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(matchers, _)| matchers);
        // As in `outcome=~"pending|failed",instance="a"`.
        let labels = matchers.split("\",").filter_map(|matcher| {
            let (label, value) = matcher.split_once('=')?;
            let values = value.trim_start_matches('~').trim_matches('"').split('|');
            Some((label.to_owned(), values.map(ToOwned::to_owned).collect()))
        });
        Selector { name: name.to_owned(), labels: labels.collect() }
    };
    starts.map(selector).collect()
}

/// The alerts, without what is said about them.
fn alerts() -> String {
    let text = read(ALERTS);
    text.split_inclusive('\n').filter(|line| !line.trim_start().starts_with('#')).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).expect("it is JSON")
}

/// All questions of the dashboard, and how their answers are named.
fn questions(dashboard: &Value) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().expect("there are some");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let text = |value: &Value| value.as_str().expect("it is text").to_owned();
    targets.map(|target| (text(&target["expr"]), text(&target["legendFormat"]))).collect()
}

fn all_questions() -> String {
    questions(&dashboard()).into_iter().map(|(question, _)| question + "\n").collect()
}

#[test]
fn every_metric_that_is_watched_exists_and_every_other_is_on_the_dashboard() {
    let (plain, histograms) = (counted_by(&["counter", "gauge"]), counted_by(&["histogram"]));
    let of_a_histogram = |name: &str| {
        let parts = ["_bucket", "_sum", "_count"].iter().filter_map(|part| name.strip_suffix(part));
        parts.map(ToOwned::to_owned).find(|name| histograms.contains(name))
    };
    let mut seen = BTreeSet::new();
    for (place, text) in [(ALERTS, read(ALERTS)), (ALERTS_TESTS, read(ALERTS_TESTS)), (DASHBOARD, all_questions())] {
        for Selector { name, .. } in selectors(&text) {
            let metric = if plain.contains(&name) { Some(name.clone()) } else { of_a_histogram(&name) };
            let metric = metric.unwrap_or_else(|| panic!("{place} asks for {name}, which nobody counts"));
            if place == DASHBOARD {
                seen.insert(metric);
            }
        }
    }
    let all: BTreeSet<String> = plain.union(&histograms).cloned().collect();
    assert_eq!(all.difference(&seen).collect::<Vec<_>>(), Vec::<&String>::new(), "not on the dashboard");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_that_are_asked_for_and_probes_are_there() {
    let stack = Stack::start().await;
    stack.post("{}", "").await;
    let processes = [("api", &stack.apis[0]), ("relay", &stack.relays[0]), ("worker", &stack.workers[0])];
    let mut page = String::new();
    for (_, process) in processes {
        page += &fetch(&process.metrics_url("/metrics")).await;
    }
    let has = |name: &str, label: &str| {
        let (series, label) = (format!("{name}{{"), format!("{label}=\""));
        page.lines().any(|line| line.starts_with(&series) && line.contains(&label))
    };
    for text in [alerts(), all_questions()] {
        for Selector { name, labels } in selectors(&text) {
            for (label, values) in labels {
                assert!(has(&name, &label), "{name} has no label {label}");
                // Which statuses there have been is of no interest.
                for value in values.iter().filter(|_| label != "status") {
                    let series = |line: &&str| line.starts_with(&format!("{name}{{"));
                    let is_there = page.lines().filter(series).any(|it| it.contains(&format!("{label}=\"{value}\"")));
                    assert!(is_there, "no series of {name} has {label}=\"{value}\"");
                }
            }
        }
        // `instance` is of Prometheus.
        for label in between(&text, "by (", ")").flat_map(|labels| labels.split(", ")).filter(|it| *it != "instance") {
            assert!(page.contains(&format!("{label}=\"")), "nothing has the label {label}");
        }
    }
    for (path, manifest) in manifests() {
        let service = processes.into_iter().find(|(service, _)| path.ends_with(&format!("/{service}.yaml")));
        for probe in between(&manifest, "httpGet: { path: ", " }") {
            let (_, process) = service.unwrap_or_else(|| panic!("{path} has a probe, and is of no service"));
            let (route, port) = probe.split_once(", port: ").expect("each has a port");
            let request = match port {
                "metrics" => http_client().get(process.metrics_url(route)),
                "http" => stack.client.get(route),
                other => panic!("{path}: no port is called {other}"),
            };
            assert_eq!(send(request).await.expect("it answers").status, 200, "{path}: {route} at {port}");
        }
    }
    stack.wait_until_drained(PATIENCE).await;
    stack.finish().await;
}

#[test]
fn each_alert_says_what_to_do_and_is_tried_both_ways() {
    let (alerts, tests, page) = (alerts(), read(ALERTS_TESTS), read("docs/operating.md"));
    // As GitHub makes them.
    let anchor = |heading: &str| -> String {
        let kept = heading.chars().filter(|it| it.is_alphanumeric() || [' ', '-', '_'].contains(it));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    let headings = page.lines().filter(|line| line.starts_with("##"));
    let sections: BTreeSet<String> = headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect();

    // Each test names its alert, and says at once what is to be expected.
    let tried: BTreeSet<(&str, bool)> = tests
        .split("alertname: ")
        .skip(1)
        .map(|test| {
            let (name, expected) = test.split_once('\n').expect("more follows");
            let quiet = expected.trim_start().starts_with("exp_alerts: []");
            assert!(quiet || expected.contains("exp_labels:"), "the tests of {name} expect nothing");
            (name, !quiet)
        })
        .collect();

    let alerts: Vec<&str> = alerts.split("- alert: ").skip(1).collect();
    assert!(alerts.len() > 20, "only {} alerts were found", alerts.len());
    for alert in alerts {
        let name = alert.lines().next().expect("a split has a part");
        let severity = between(alert, "severity: ", " }").next();
        assert!(severity.is_some_and(|it| ["critical", "warning", "info"].contains(&it)), "{name}: {severity:?}");
        assert!(alert.contains("summary: "), "{name} says nothing");
        let runbook = between(alert, "runbook: docs/operating.md#", "\n").next();
        let runbook = runbook.unwrap_or_else(|| panic!("{name} does not say what to do"));
        assert!(sections.contains(runbook), "{name}: docs/operating.md has no section #{runbook}");
        for fires in [true, false] {
            assert!(tried.contains(&(name, fires)), "{name} has no test in which it fires: {fires}");
        }
    }
}

#[test]
fn the_dashboard_can_be_imported_and_asks_what_prometheus_understands() {
    let dashboard = dashboard();
    assert!(dashboard["uid"].as_str().is_some_and(|uid| !uid.is_empty()) && dashboard["id"].is_null());
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 36));
    let variables = dashboard["templating"]["list"].as_array().expect("there are some");
    let source = variables.iter().find(|it| it["type"] == "datasource").expect("it asks which Prometheus to use");
    assert_eq!((&source["name"], &source["query"]), (&json!("datasource"), &json!("prometheus")));

    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("there are some") {
        assert!(ids.insert(panel["id"].as_u64()), "two panels have the id {}", panel["id"]);
    }
    for source in dashboard.to_string().split("\"datasource\":").skip(1) {
        let is_the_variable = source.starts_with(r#"{"type":"prometheus","uid":"${datasource}"}"#);
        assert!(is_the_variable, "a Prometheus of somebody's is named: {}", &source[..60]);
    }

    // As rules, which promtool reads. JSON is YAML as well.
    let rules = questions(&dashboard).into_iter().enumerate().map(|(number, (question, _))| {
        json!({ "record": format!("question:{number}"), "expr": question.replace("$__rate_interval", "5m") })
    });
    let rules = json!({ "groups": [{ "name": "dashboard", "rules": rules.collect::<Vec<Value>>() }] });
    let file = tempfile::NamedTempFile::new().expect("there is room");
    std::fs::write(file.path(), rules.to_string()).expect("it can be written");
    let checked = Command::new("promtool").args(["check", "rules"]).arg(file.path()).output();
    let checked = checked.expect("scripts/test installs promtool");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
