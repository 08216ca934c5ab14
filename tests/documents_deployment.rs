//! What `deploy/` names exists: metrics and their labels, variables, commands, the image, sections of docs/operating.md; and
//! each alert is tried. What its files are to the tools that read them, `scripts/check-deploy` says.

mod runs;
mod watched;

use std::path::{Path, PathBuf};

fn path_of(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is in one").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path_of(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files of some folders whose names end like this, each with its text.
fn files(folders: &[&str], end: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for folder in folders {
        for entry in std::fs::read_dir(path_of(folder)).expect("it is there") {
            let name = entry.expect("it can be read").file_name().into_string().expect("its name is text");
            if name.ends_with(end) {
                let path = format!("{folder}/{name}");
                files.push((path.clone(), read(&path)));
            }
        }
    }
    files
}

fn units() -> Vec<(String, String)> {
    files(&["deploy/systemd"], ".service")
}

fn manifests() -> Vec<(String, String)> {
    files(&["deploy/kubernetes", "deploy/kubernetes/migrate"], ".yaml")
}

/// What stands between the one and the other, wherever it does; the next beginning ends it as well.
fn between<'a>(text: &'a str, start: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(start).skip(1).filter_map(move |rest| rest.split(end).next())
}
