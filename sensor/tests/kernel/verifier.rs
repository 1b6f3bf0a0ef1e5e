//! Every program passes the verifier of the running kernel; of those that do not, the end of its log is shown.

use std::time::Instant;

use sallyport_sensor::kernel::{probe, verify};

/// Lines of a log that are shown: the last ones say what was wrong, those before say how it got there.
const LINES: usize = 60;

#[test]
fn accepts_every_program() {
    let mode = probe().mode.expect("a mode that works here");
    let start = Instant::now();
    let all = verify(mode).expect("load");
    let mut refused = Vec::new();
    let mut sum = 0_u64;
    for verified in &all {
        match &verified.outcome {
            Ok(instructions) => {
                sum += u64::from(instructions.unwrap_or_default());
                println!("{}: {instructions:?} instructions", verified.program);
            }
            Err(log) => {
                let lines: Vec<&str> = log.lines().collect();
                let end = &lines[lines.len().saturating_sub(LINES)..];
                refused.push(format!("{} is refused:\n{}", verified.program, end.join("\n")));
            }
        }
    }
    println!("{mode}: {} programs, {sum} instructions, {:?}", all.len(), start.elapsed());
    assert!(!all.is_empty());
    assert!(refused.is_empty(), "{} refused\n{}", refused.len(), refused.join("\n\n"));
}
