//! Two charts in one picture: how long callers waited, and how fast jobs went through.

use std::fmt::Write;

use crate::report::table::number;
use crate::report::{Curve, Report};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 400.0;

/// Distinct for people who see colours otherwise, too (Okabe and Ito).
const COLOURS: [&str; 4] = ["#0072b2", "#e69f00", "#009e73", "#d55e00"];

/// The picture, or `None` when there is nothing to draw.
pub(crate) fn render(report: &Report) -> Option<String> {
    if report.latencies.is_empty() && report.throughput.is_empty() {
        return None;
    }
    let latencies = Chart {
        title: "From request to 202, by percentile (ms)",
        left: 60.0,
        horizontal: Axis { ticks: percentile_ticks(), place: nines },
        vertical: Axis { ticks: decades(&report.latencies), place: f64::log10 },
        curves: &report.latencies,
    };
    let throughput = Chart {
        title: "End to end: jobs a second over seconds",
        left: 545.0,
        horizontal: Axis { ticks: even_ticks(&report.throughput, |point| point.0), place: |value| value },
        vertical: Axis { ticks: even_ticks(&report.throughput, |point| point.1), place: |value| value },
        curves: &report.throughput,
    };
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#333\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{}{}\
         <text x=\"60\" y=\"392\" font-size=\"10\">{} processors, everything on them; commit {}, {}</text>\n</svg>\n",
        latencies.render(),
        throughput.render(),
        report.machine.processors,
        report.machine.commit,
        report.machine.started,
    ))
}

/// Values that get a line and a number, and how a value turns into a distance.
struct Axis {
    ticks: Vec<(f64, String)>,
    place: fn(f64) -> f64,
}

impl Axis {
    /// Where a value is, 0 at the first tick and 1 at the last.
    fn share(&self, value: f64) -> f64 {
        let place = |tick: Option<&(f64, String)>| tick.map_or(0.0, |(value, _)| (self.place)(*value));
        let (first, last) = (place(self.ticks.first()), place(self.ticks.last()));
        (((self.place)(value) - first) / (last - first).max(f64::EPSILON)).clamp(0.0, 1.0)
    }
}

/// A percentile's place is its number of nines: 90 is one, 99 two.
fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).log10()
}

fn percentile_ticks() -> Vec<(f64, String)> {
    [1.0, 50.0, 90.0, 99.0, 99.9, 99.99].map(|value| (value, format!("p{value}"))).to_vec()
}

/// Powers of ten around all values.
fn decades(curves: &[Curve]) -> Vec<(f64, String)> {
    let values = || curves.iter().flat_map(|curve| &curve.points).map(|point| point.1).filter(|value| *value > 0.0);
    let (least, most) = (values().fold(1.0, f64::min), values().fold(1.0, f64::max));
    let mut ticks = vec![10_f64.powf(least.log10().floor())];
    while let Some(&last) = ticks.last().filter(|&&last| last < most) {
        ticks.push(last * 10.0);
    }
    ticks.into_iter().map(|value| (value, format!("{value}"))).collect()
}

/// Round steps from 0 to the largest value.
fn even_ticks(curves: &[Curve], value: fn(&(f64, f64)) -> f64) -> Vec<(f64, String)> {
    let most = curves.iter().flat_map(|curve| &curve.points).map(value).fold(0.01, f64::max);
    let decade = 10_f64.powf((most / 4.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * decade).into_iter().find(|step| most / step <= 6.0);
    let step = step.unwrap_or(most);
    let ticks = (0..=8).map(|index| f64::from(index) * step);
    ticks.take_while(|tick| *tick < most + step).map(|tick| (tick, tick_label(tick))).collect()
}

fn tick_label(value: f64) -> String {
    if value.fract() == 0.0 { number(value).replace(".00", "").replace(".0", "") } else { number(value) }
}

struct Chart<'a> {
    title: &'static str,
    left: f64,
    horizontal: Axis,
    vertical: Axis,
    curves: &'a [Curve],
}

const CHART_WIDTH: f64 = 380.0;
const CHART_TOP: f64 = 60.0;
const CHART_HEIGHT: f64 = 280.0;

impl Chart<'_> {
    fn x(&self, value: f64) -> f64 {
        self.left + CHART_WIDTH * self.horizontal.share(value)
    }

    fn y(&self, value: f64) -> f64 {
        CHART_TOP + CHART_HEIGHT * (1.0 - self.vertical.share(value))
    }

    fn render(&self) -> String {
        let (left, right, bottom) = (self.left, self.left + CHART_WIDTH, CHART_TOP + CHART_HEIGHT);
        let mut out =
            format!("<text x=\"{left}\" y=\"20\" font-size=\"14\" font-weight=\"bold\">{}</text>\n", self.title);
        for (value, label) in &self.vertical.ticks {
            let y = self.y(*value);
            line(&mut out, (left, y), (right, y));
            text(&mut out, (left - 6.0, y + 4.0), "end", label);
        }
        for (value, label) in &self.horizontal.ticks {
            let x = self.x(*value);
            line(&mut out, (x, CHART_TOP), (x, bottom));
            text(&mut out, (x, bottom + 16.0), "middle", label);
        }
        let mut legend = left;
        for (curve, colour) in self.curves.iter().zip(COLOURS) {
            let points = curve.points.iter().map(|(x, y)| format!("{:.1},{:.1}", self.x(*x), self.y(*y)));
            let points = points.collect::<Vec<_>>().join(" ");
            let _ =
                writeln!(out, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
            let _ = writeln!(out, "<text x=\"{legend}\" y=\"42\" fill=\"{colour}\">{}</text>", curve.name);
            legend += 96.0;
        }
        out
    }
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(out, "<path d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"#ddd\"/>");
}

fn text(out: &mut String, at: (f64, f64), anchor: &str, what: &str) {
    let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{what}</text>", at.0, at.1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::machine::Machine;

    #[test]
    fn draws_every_curve_within_the_picture() {
        let mut report = Report::new(Machine::default(), String::new());
        assert!(render(&report).is_none());
        let curve = |points: &[(f64, f64)]| Curve { name: "some".to_owned(), points: points.to_vec() };
        report.latencies = vec![curve(&[(1.0, 0.2), (99.99, 150.0)])];
        report.throughput = vec![curve(&[(0.0, 0.0), (10.0, 4_321.0)])];
        let svg = render(&report).expect("there is something to draw");
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn each_nine_is_as_wide() {
        assert!((nines(99.0) - 2.0 * nines(90.0)).abs() < 1e-9);
    }
}
