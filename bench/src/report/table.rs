//! The report on a screen.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Table};

use crate::report::{Figure, Report, Section, Unit};

/// The whole report as text.
pub(crate) fn render(report: &Report) -> String {
    let tables = report.sections.iter().map(|section| format!("\n{}\n", table(report, section)));
    let violations = report.violations.iter().map(|violation| format!("VIOLATION: {violation}\n"));
    std::iter::once(format!("{}\n", report.machine.sentences())).chain(tables).chain(violations).collect()
}

fn table(report: &Report, section: &Section) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(vec![
        Cell::new(&section.title),
        Cell::new("median").set_alignment(CellAlignment::Right),
        Cell::new("least … most").set_alignment(CellAlignment::Right),
        Cell::new("of its limit"),
    ]);
    for figures in section.figures.chunk_by(are_percentiles_of_one) {
        table.add_row(vec![
            Cell::new(name(figures)),
            Cell::new(medians(figures)).set_alignment(CellAlignment::Right),
            Cell::new(spreads(figures)).set_alignment(CellAlignment::Right),
            Cell::new(shares(report, &figures[0])),
        ]);
    }
    table
}

/// What comes before `.p50` in a key, if it is a percentile's.
fn without_percentile(figure: &Figure) -> Option<&str> {
    figure.key.split_once(".p").filter(|(_, rest)| rest.starts_with(|it: char| it.is_ascii_digit())).map(|it| it.0)
}

/// The percentiles of one distribution share a row.
fn are_percentiles_of_one(one: &Figure, other: &Figure) -> bool {
    without_percentile(one).is_some() && without_percentile(one) == without_percentile(other)
}

/// The name of a figure, or that of the first with all percentiles.
fn name(figures: &[Figure]) -> String {
    let others = figures[1..].iter().filter_map(|figure| figure.name.rsplit(", ").next());
    others.fold(figures[0].name.clone(), |name, percentile| name + " · " + percentile)
}

fn medians(figures: &[Figure]) -> String {
    let unit = with_unit(figures[figures.len() - 1].median(), figures[0].unit);
    let others = figures[..figures.len() - 1].iter().map(|figure| number(figure.median()) + " · ");
    others.collect::<String>() + &unit
}

/// One line for each figure that was measured more than once.
fn spreads(figures: &[Figure]) -> String {
    let repeated = figures.iter().filter(|figure| figure.samples.len() > 1);
    let spread = repeated.map(|figure| format!("{} … {}", number(figure.least()), number(figure.most())));
    spread.collect::<Vec<_>>().join("\n")
}

/// The figure as a percentage of each of its limits that was measured in the same run.
fn shares(report: &Report, figure: &Figure) -> String {
    let share = |key: &String| {
        let limit = report.find(key)?;
        Some(format!("{} % of {}", number(100.0 * figure.median() / limit.median()), limit.name))
    };
    figure.limits.iter().filter_map(share).collect::<Vec<_>>().join("\n")
}

/// A number with its unit.
pub(crate) fn with_unit(value: f64, unit: Unit) -> String {
    let unit = match unit {
        Unit::PerSecond => "/s",
        Unit::Milliseconds => " ms",
        Unit::Microseconds => " µs",
        Unit::Bytes => " B",
        Unit::Mebibytes => " MiB",
        Unit::Percent => " %",
        Unit::Times => " ×",
        Unit::Rows => "",
    };
    format!("{}{unit}", number(value))
}

/// Three significant digits at least, thousands apart.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        below if below < 10.0 => 2,
        below if below < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        let left = whole.len() - index;
        if digit.is_ascii_digit() && index > 0 && left % 3 == 0 && grouped.ends_with(|it: char| it.is_ascii_digit()) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::machine::Machine;

    #[test]
    fn numbers_are_easy_to_read() {
        for (value, text) in [(0.1234, "0.12"), (12.34, "12.3"), (999.6, "1,000"), (1_234_567.0, "1,234,567")] {
            assert_eq!(number(value), text);
        }
        assert_eq!(number(-123.0), "-123");
    }

    #[test]
    fn a_figure_stands_beside_its_limit() {
        let mut report = Report::new(Machine::default(), String::new());
        report.section("Limits").add("limit", "pgbench", Unit::PerSecond, 200.0);
        report.section("Ingest").add("rate", "accepted", Unit::PerSecond, 50.0).bounded_by(&["limit", "not there"]);
        assert!(render(&report).contains("25.0 % of pgbench"));
    }
}
