//! What the demo shows and the end-to-end tests assert: a real ssh client, a session judged in the kernel,
//! and the evidence of it.
//!
//! Every line says what was expected and what happened. A denial is held against its side effect: the file
//! that the program would have destroyed, the connection that the listener would have counted; and against a
//! control, the same thing outside of a session, which must succeed.

mod facts;
mod steps;
mod table;

use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Context, Result};

pub use facts::Facts;
pub use table::print as print_table;

use crate::Stage;
use crate::command_line::Person;
use crate::listener::Witness;
use crate::ssh::Ssh;

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Line {
    /// What was tried.
    pub what: String,
    /// What should come of it.
    pub expected: String,
    /// What came of it.
    pub happened: String,
    /// Was it as expected, side effects, control and record included?
    pub held: bool,
    /// Indices of the records in the log.
    pub records: Vec<u64>,
}

/// The outcome of a story.
#[derive(Debug)]
pub struct Outcome {
    /// All lines, in order.
    pub lines: Vec<Line>,
    /// The session that has most to replay.
    pub session: String,
    /// `lsm` or `tracepoint`.
    pub mode: String,
}

impl Outcome {
    /// Did every line hold?
    #[must_use]
    pub fn held(&self) -> bool {
        !self.lines.is_empty() && self.lines.iter().all(|line| line.held)
    }
}

/// The people and things of a story that runs.
struct Story<'a> {
    stage: &'a mut Stage,
    facts: Facts,
    /// The engineer's client.
    alice: Ssh,
    /// Reads the evidence and pushes policy.
    sam: Person,
    work: PathBuf,
    /// Plays the production database, for as long as the process lives.
    database: Rc<Witness>,
    mode: String,
    lines: Vec<Line>,
    report: &'a mut dyn FnMut(&Line),
}

/// Tells the whole story. `report` gets each line as it is decided.
///
/// # Errors
/// Something went so wrong that the story cannot go on; what merely is not as it should be is a line that did
/// not hold.
pub fn tell(stage: &mut Stage, facts: Facts, report: &mut dyn FnMut(&Line)) -> Result<Outcome> {
    let sam = stage.signed_in("sam").context("the security engineer signs in with `sallyport login`")?;
    let alice = stage.ssh("alice", &sam)?;
    let work = stage.work("story")?;
    let database = Rc::new(Witness::listen(facts::FORBIDDEN_ADDRESS, facts::FORBIDDEN_PORT)?);
    let (mode, lines) = (String::new(), Vec::new());
    let mut story = Story { stage, facts, alice, sam, work, database, mode, lines, report };
    story.sign_in()?;
    story.allowed_command()?;
    story.forbidden_program()?;
    story.disguised_program()?;
    story.forbidden_connections()?;
    let session = story.interactive()?;
    story.log_verifies()?;
    Ok(Outcome { lines: story.lines, session, mode: story.mode })
}
