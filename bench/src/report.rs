//! What was measured, and the forms it is shown in.

pub(crate) mod compare;
pub(crate) mod machine;
pub(crate) mod svg;
pub(crate) mod table;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::report::machine::Machine;

/// A whole run of the bench; what `--json` writes and `--compare` reads.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub machine: Machine,
    /// The options that it ran with.
    pub command: String,
    pub sections: Vec<Section>,
    /// Latency at each percentile, one for each number of connections.
    pub latencies: Vec<Curve>,
    /// Jobs a second over the seconds of an end-to-end run.
    pub throughput: Vec<Curve>,
    /// What must not be: a job lost, failed or made up.
    pub violations: Vec<String>,
}

/// Figures that belong together.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Section {
    pub title: String,
    pub figures: Vec<Figure>,
}

/// One measured quantity, once for each repetition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// Its name for machines, the same in every version.
    pub key: String,
    pub name: String,
    pub unit: Unit,
    pub samples: Vec<f64>,
    /// Keys of the figures that bound this one.
    pub limits: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    PerSecond,
    Milliseconds,
    Microseconds,
    Bytes,
    Mebibytes,
    Percent,
    Times,
    Rows,
}

/// A line of a chart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Curve {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

impl Figure {
    pub(crate) fn median(&self) -> f64 {
        let mut samples = self.samples.clone();
        samples.sort_by(f64::total_cmp);
        match samples.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => samples[count / 2],
            count => f64::midpoint(samples[count / 2 - 1], samples[count / 2]),
        }
    }

    pub(crate) fn least(&self) -> f64 {
        self.samples.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn most(&self) -> f64 {
        self.samples.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }
}

impl Report {
    pub(crate) fn new(machine: Machine, command: String) -> Self {
        Self { machine, command, sections: vec![], latencies: vec![], throughput: vec![], violations: vec![] }
    }

    /// Starts a section, or goes on with it: the repetitions of a figure come one after the other.
    pub(crate) fn section(&mut self, title: &str) -> &mut Section {
        let found = self.sections.iter().position(|section| section.title == title);
        let index = found.unwrap_or_else(|| {
            self.sections.push(Section { title: title.to_owned(), figures: vec![] });
            self.sections.len() - 1
        });
        &mut self.sections[index]
    }

    pub(crate) fn find(&self, key: &str) -> Option<&Figure> {
        self.sections.iter().flat_map(|section| &section.figures).find(|figure| figure.key == key)
    }
}

impl Section {
    /// Adds a sample to the figure of this key.
    pub(crate) fn add(&mut self, key: &str, name: &str, unit: Unit, sample: f64) -> &mut Figure {
        let index = self.figures.iter().position(|figure| figure.key == key).unwrap_or_else(|| {
            let (key, name) = (key.to_owned(), name.to_owned());
            self.figures.push(Figure { key, name, unit, samples: vec![], limits: vec![] });
            self.figures.len() - 1
        });
        let figure = &mut self.figures[index];
        figure.samples.push(sample);
        figure
    }
}

impl Figure {
    /// Names the figures that bound this one.
    pub(crate) fn bounded_by(&mut self, keys: &[&str]) {
        self.limits = keys.iter().map(|&key| key.to_owned()).collect();
    }
}

/// A duration as a sample.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// So much of something for each of `count` jobs.
#[allow(clippy::cast_precision_loss, reason = "no run has 2^52 jobs")]
pub(crate) fn for_each(amount: f64, count: u64) -> f64 {
    amount / count as f64
}

/// So many in this time, as a rate.
#[allow(clippy::cast_precision_loss, reason = "no run has 2^52 jobs")]
pub(crate) fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(f64::EPSILON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_go_to_one_figure() {
        let mut report = Report::new(Machine::default(), String::new());
        for sample in [3.0, 1.0, 2.0] {
            report.section("drain").add("drain.rate", "drained", Unit::PerSecond, sample);
        }
        let figure = report.find("drain.rate").expect("it was added");
        assert_eq!((figure.least(), figure.median(), figure.most()), (1.0, 2.0, 3.0));
    }
}
