//! Figures: printed as they come, with their baseline and the ratio.

use anyhow::Result;
use serde_json::json;

/// Collects and prints.
pub(crate) struct Figures {
    json: bool,
    rows: usize,
    /// The rows, in Markdown.
    table: String,
}

/// One measured value.
pub(crate) struct Figure<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: f64,
    pub(crate) unit: &'a str,
    /// What it is compared with, in the same unit.
    pub(crate) baseline: Option<f64>,
    /// What the baseline is.
    pub(crate) beside: &'a str,
}

impl Figures {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, rows: 0, table: String::new() }
    }

    pub(crate) fn add(&mut self, figure: &Figure<'_>) {
        let ratio =
            figure.baseline.filter(|baseline| *baseline != 0.0).map(|baseline| figure.value / baseline);
        self.rows += 1;
        let shown = |value: Option<f64>, digits: usize| {
            value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
        };
        self.table += &format!(
            "| {} | {} {} | {} | {} | {} |\n",
            figure.name,
            shown(Some(figure.value), 1),
            figure.unit,
            shown(figure.baseline, 1),
            shown(ratio, 2),
            figure.beside
        );
        if self.json {
            println!(
                "{}",
                json!({
                    "name": figure.name, "value": figure.value, "unit": figure.unit,
                    "baseline": figure.baseline, "ratio": ratio,
                })
            );
            return;
        }
        if self.rows == 1 {
            println!(
                "{:52} {:>10} {:6} {:>12} {:>7}  beside",
                "figure", "value", "unit", "baseline", "ratio"
            );
        }
        println!(
            "{:52} {:>10} {:6} {:>12} {:>7}  {}",
            figure.name,
            shown(Some(figure.value), 1),
            figure.unit,
            shown(figure.baseline, 1),
            shown(ratio, 2),
            figure.beside
        );
    }

    /// All rows as a table.
    pub(crate) fn markdown(&self) -> String {
        format!("| figure | value | baseline | ratio | beside |\n|---|---|---|---|---|\n{}", self.table)
    }

    pub(crate) fn finish(self) -> Result<()> {
        anyhow::ensure!(self.rows > 0, "no figure has such a name");
        Ok(())
    }
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
