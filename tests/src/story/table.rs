//! The table at the end.

use std::io::Write;

use super::Line;

/// Prints the lines as a table.
///
/// # Errors
/// The output is gone.
pub fn print(lines: &[Line], out: &mut dyn Write) -> std::io::Result<()> {
    let width = |of: fn(&Line) -> &str| lines.iter().map(|line| of(line).chars().count()).max().unwrap_or(0);
    let (what, expected, happened) = (width(|l| &l.what), width(|l| &l.expected), width(|l| &l.happened));
    writeln!(out, "     {:what$}  {:expected$}  {:happened$}  records", "tried", "expected", "happened")?;
    for line in lines {
        let mark = if line.held { "ok  " } else { "FAIL" };
        let records: Vec<String> = line.records.iter().map(|index| format!("#{index}")).collect();
        writeln!(
            out,
            "{mark} {:what$}  {:expected$}  {:happened$}  {}",
            line.what,
            line.expected,
            line.happened,
            records.join(" ")
        )?;
    }
    let held = lines.iter().filter(|line| line.held).count();
    writeln!(out, "{held} of {} held", lines.len())
}
