//! How far the bench is.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on a terminal, a line for each step elsewhere.
pub(crate) struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
}

impl Progress {
    pub(crate) fn new(steps: u64) -> Self {
        let style = ProgressStyle::with_template("{elapsed_precise} {bar:30} {pos}/{len} {msg}");
        let bar = ProgressBar::new(steps).with_style(style.expect("the template is a good one"));
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar, is_terminal: stderr().is_terminal() }
    }

    /// Says what comes now; what came before is done.
    pub(crate) fn step(&self, what: &str) {
        if self.is_terminal {
            self.bar.inc(1);
            self.bar.set_message(what.to_owned());
        } else {
            eprintln!("bench: {what}");
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
