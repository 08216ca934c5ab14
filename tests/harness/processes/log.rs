//! What a process writes, kept line by line.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::watch;

use crate::servers::workspace;

/// Lines of a log that a failed test shows; the whole is in the file that it names.
const LINES_SHOWN: usize = 40;

/// The lines of a process so far.
pub(super) struct Log {
    lines: Mutex<Vec<String>>,
    /// Raised at every line; the value is of no interest.
    changed: watch::Sender<()>,
}

impl Log {
    pub(super) fn new() -> Self {
        Self { lines: Mutex::default(), changed: watch::Sender::new(()) }
    }

    /// What hears of every line from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The first word of its lines that is one of these.
    pub(super) fn first_of<'word>(&self, words: &[&'word str]) -> Option<&'word str> {
        let lines = self.lines();
        let mut said = lines.iter().flat_map(|line| line.split(|it: char| !it.is_alphanumeric() && it != '_'));
        said.find_map(|said| words.iter().copied().find(|word| *word == said))
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Prints the end of it, and keeps the whole in a file of this name.
    pub(super) fn show(&self, name: &str) {
        let lines = self.lines();
        let directory = workspace().join("target/failed");
        let path = directory.join(format!("{name}.log"));
        let written = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&path, lines.join("\n")));
        let whole = written.map_or_else(|error| error.to_string(), |()| path.display().to_string());
        let last = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
        eprintln!("---- {name} (all of it: {whole}) ----\n{}", last.join("\n"));
    }
}

/// Reads to the end of the stream.
pub(super) async fn keep_lines(stream: impl AsyncRead + Unpin, log: Arc<Log>) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        log.changed.send_replace(());
    }
}
