//! A report beside an earlier one.

use std::path::Path;

use anyhow::Context;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Table};

use crate::report::table::{number, with_unit};
use crate::report::{Figure, Report, Unit};

/// Reads what `--json` wrote.
pub(crate) fn read(path: &Path) -> anyhow::Result<Report> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a report of this bench", path.display()))
}

/// Every figure that both have, with the ratio of new to old.
pub(crate) fn render(new: &Report, old: &Report) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["figure", "old", "new", "new / old", ""]);
    let figures = new.sections.iter().flat_map(|section| section.figures.iter().map(move |it| (&section.title, it)));
    for (title, figure) in figures {
        let Some(before) = old.find(&figure.key) else { continue };
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        table.add_row(vec![
            Cell::new(format!("{title}: {}", figure.name)),
            right(with_unit(before.median(), figure.unit)),
            right(with_unit(figure.median(), figure.unit)),
            right(ratio(figure.median(), before.median())),
            Cell::new(verdict(figure, before)),
        ]);
    }
    format!("\nCompared with {} of {}\n{table}", old.machine.commit, old.machine.started)
}

fn ratio(new: f64, old: f64) -> String {
    if old > 0.0 { number(new / old) } else { String::new() }
}

/// What the ratio means. Nothing without repetitions: who knows how far another one would have been off?
fn verdict(new: &Figure, old: &Figure) -> &'static str {
    if new.samples.len() < 2 || old.samples.len() < 2 {
        return "";
    }
    let more = new.least() > old.most();
    let less = new.most() < old.least();
    let more_is_better = new.unit == Unit::PerSecond;
    match (more, less) {
        (true, _) if more_is_better => "better",
        (_, true) if more_is_better => "worse",
        (true, _) => "more",
        (_, true) => "less",
        _ => "within the spread",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::machine::Machine;

    #[test]
    fn ratios_are_new_to_old() {
        let report = |samples: &[f64]| {
            let mut report = Report::new(Machine::default(), String::new());
            for &sample in samples {
                report.section("Drain").add("drain.rate", "drained", Unit::PerSecond, sample);
            }
            report
        };
        let text = render(&report(&[30.0, 31.0]), &report(&[20.0, 21.0]));
        assert!(text.contains("1.49") && text.contains("better"), "{text}");
        let text = render(&report(&[20.5, 20.6]), &report(&[20.0, 21.0]));
        assert!(text.contains("within the spread"), "{text}");
    }
}
