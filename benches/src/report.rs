//! The table at the end, and the arithmetic of percentiles.

use std::time::Duration;

/// Rows of the table, in the order they were measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<[String; 4]>,
}

impl Report {
    /// Adds a row; says it at once too, since a whole run takes minutes.
    pub(crate) fn row(&mut self, what: &str, measured: String, budget: &str, holds: Option<bool>) {
        let verdict = match holds {
            Some(true) => "holds",
            Some(false) => "missed",
            None => "",
        };
        eprintln!("measured {what}: {measured} {verdict}");
        self.rows.push([what.to_owned(), measured, budget.to_owned(), verdict.to_owned()]);
    }

    /// Prints the table as Markdown, aligned.
    pub(crate) fn print(&self) {
        let heading = ["What", "Measured", "Budget", ""].map(str::to_owned);
        let width = |column: usize| {
            let cells = self.rows.iter().chain([&heading]);
            cells.map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths = [width(0), width(1), width(2), width(3)];
        let line = |row: &[String; 4]| {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!(" {cell:<width$} "));
            println!("|{}|", cells.collect::<Vec<_>>().join("|"));
        };
        line(&heading);
        println!("|{}|", widths.map(|width| "-".repeat(width + 2)).join("|"));
        self.rows.iter().for_each(line);
    }
}

/// The value below which `percent` of the samples lie; sorts them.
pub(crate) fn percentile(samples: &mut [Duration], percent: usize) -> Duration {
    samples.sort_unstable();
    let last = samples.len().saturating_sub(1);
    samples.get(last * percent / 100).copied().unwrap_or_default()
}

/// A duration in milliseconds, for people.
pub(crate) fn millis(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1000.0)
}
