//! Figures, and the table that they stand in.

use std::fmt;
use std::time::Duration;

/// One line of the table.
pub(super) struct Row {
    what: String,
    measured: String,
    beside: String,
    ratio: String,
    target: String,
    met: Option<bool>,
}

impl Row {
    pub(super) fn new(what: impl Into<String>, measured: impl Into<String>) -> Self {
        let none = String::new;
        Self { what: what.into(), measured: measured.into(), beside: none(), ratio: none(), target: none(), met: None }
    }

    /// What it is held against, in this run.
    pub(super) fn beside(mut self, beside: impl Into<String>, ratio: impl Into<String>) -> Self {
        (self.beside, self.ratio) = (beside.into(), ratio.into());
        self
    }

    /// What was aimed at, and whether it was reached.
    pub(super) fn target(mut self, target: impl Into<String>, met: bool) -> Self {
        (self.target, self.met) = (target.into(), Some(met));
        self
    }

    fn cells(&self) -> [&str; 6] {
        let met = match self.met {
            Some(true) => "yes",
            Some(false) => "no",
            None => "",
        };
        [&self.what, &self.measured, &self.beside, &self.ratio, &self.target, met]
    }
}

/// All lines, written as Markdown with columns that line up.
#[derive(Default)]
pub(super) struct Table(Vec<Row>);

impl Table {
    pub(super) fn push(&mut self, row: Row) {
        self.0.push(row);
    }
}

const HEAD: [&str; 6] = ["what", "measured", "beside", "ratio", "target", "met"];

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.0.iter().map(|row| row.cells()[column].chars().count());
            cells.max().unwrap_or(0).max(HEAD[column].len())
        };
        let widths: [usize; 6] = std::array::from_fn(width);
        let line = |f: &mut fmt::Formatter<'_>, cells: [&str; 6]| {
            for (cell, width) in cells.iter().zip(widths) {
                write!(f, "| {cell:width$} ")?;
            }
            writeln!(f, "|")
        };
        line(f, HEAD)?;
        for width in widths {
            write!(f, "|{}", "-".repeat(width + 2))?;
        }
        writeln!(f, "|")?;
        self.0.iter().try_for_each(|row| line(f, row.cells()))
    }
}

/// The value below which `part` (0 to 1) of the samples lie. Sorts them.
pub(super) fn quantile(samples: &mut [Duration], part: f64) -> Duration {
    samples.sort_unstable();
    let last = samples.len().saturating_sub(1);
    samples.get((last as f64 * part).round() as usize).copied().unwrap_or_default()
}

pub(super) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_quantiles_are_samples() {
        let mut table = Table::default();
        table.push(Row::new("seal", "2.0 µs").beside("bare 1.0 µs", "+1.0 µs").target("at most +2.0 µs", true));
        table.push(Row::new("a longer name", "1").target("2", false));
        let text = table.to_string();
        let widths: Vec<_> = text.lines().map(|line| line.chars().count()).collect();
        assert!(widths.len() == 4 && widths.iter().all(|width| *width == widths[0]), "{text}");
        let mut samples: Vec<_> = (1..=100).rev().map(Duration::from_micros).collect();
        assert_eq!(quantile(&mut samples, 1.0), Duration::from_micros(100));
        assert_eq!(quantile(&mut samples, 0.0), Duration::from_micros(1));
        assert_eq!(quantile(&mut [], 0.5), Duration::ZERO);
    }
}
