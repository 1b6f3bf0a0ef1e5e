//! The decision alone: the kernel runs the question program on itself (`BPF_PROG_TEST_RUN`), with no process and no event around it.
//!
//! Two kinds of questions: always the same one, whose tables stay in the CPU's cache; and many different ones, spread over
//! the rules, as the largest bundle has them.

use anyhow::{Context, Result};
use sallyport_policy::KernelPolicy;
use sallyport_sensor::kernel::Questions;
use sallyport_sensor_abi::policy::file_op;
use sallyport_sensor_abi::question::{BATCH, Question, TEXT, kind};

use crate::counters::{Counting, Samples};
use crate::rules::SIZES;

/// Makes the question with a number.
type Ask = fn(usize) -> Question;

/// What is asked: its name, and how.
const ASKED: [(&str, Ask); 3] = [("exec", exec), ("open", open), ("connect", connect)];
/// Runs of the program for one sample; each answers a batch.
const RUNS: usize = 20;

/// What one kind of decision costs.
pub(crate) struct Pure {
    pub(crate) name: &'static str,
    pub(crate) spread: bool,
    /// Nanoseconds, by [`SIZES`].
    pub(crate) sizes: Vec<Samples>,
}

/// Asks in rounds, all sizes in each.
pub(crate) fn measure(policies: &[KernelPolicy], rounds: usize) -> Result<Vec<Pure>> {
    let _counting = Counting::on()?;
    let mut asker = Questions::load().context("load the question program")?;
    let mut all: Vec<Pure> = ASKED
        .iter()
        .flat_map(|(name, _)| {
            [false, true].map(|spread| Pure { name, spread, sizes: vec![Samples::default(); SIZES.len()] })
        })
        .collect();
    // The first round only warms up.
    for round in 0..=rounds {
        for (size, policy) in policies.iter().enumerate() {
            asker.set_policy(&policy.header, &policy.arena);
            for pure in &mut all {
                let ask = ASKED.iter().find(|(name, _)| *name == pure.name).context("no such question")?.1;
                let mut batch: Vec<Question> =
                    (0..BATCH as usize).map(|at| ask(if pure.spread { at } else { 0 })).collect();
                let before = spent()?;
                for _ in 0..RUNS {
                    asker.ask(&mut batch)?;
                }
                let nanoseconds = (spent()? - before) as f64 / (RUNS * batch.len()) as f64;
                if round > 0 {
                    pure.sizes[size].add(nanoseconds);
                }
            }
        }
    }
    Ok(all)
}

/// Nanoseconds that question programs have run up to now.
fn spent() -> Result<u64> {
    let mut spent = 0;
    for program in aya::programs::loaded_programs() {
        let program = program.context("list the kernel's programs")?;
        if program.name_as_str() == Some("sally_question") {
            spent += u64::try_from(program.run_time().as_nanos())?;
        }
    }
    Ok(spent)
}

/// Every ninth rule of its kind is asked about, so that a batch reaches over all of them.
fn number(at: usize) -> usize {
    at * 9
}

fn with_path(kind: u32, path: &str) -> Question {
    let mut question = Question {
        kind,
        slot: 0,
        what: 0,
        flags: 0,
        mode: 0o100_755,
        outside: 0,
        address: [0; 4],
        port: 0,
        protocol: 0,
        args: 0,
        args_len: 0,
        path_len: path.len() as u32,
        caller_len: 0,
        word: 0,
        cause: 0,
        _pad: 0,
        path: [0; TEXT],
        caller: [0; TEXT],
    };
    question.path[..path.len()].copy_from_slice(path.as_bytes());
    question
}

fn exec(at: usize) -> Question {
    const ARGS: &[u8] = b"run\0--verbose\0--force";
    let path = if at == 0 { "/usr/bin/true".to_owned() } else { format!("/opt/app-{}/bin/run", number(at)) };
    Question { args: ARGS.as_ptr() as u64, args_len: ARGS.len() as u32, ..with_path(kind::EXEC, &path) }
}

fn open(at: usize) -> Question {
    let path = if at == 0 { "/etc/passwd".to_owned() } else { format!("/etc/app-{}/secret", number(at)) };
    Question { what: file_op::READ, ..with_path(kind::FILE, &path) }
}

fn connect(at: usize) -> Question {
    let n = number(at) as u32;
    let address = if at == 0 { 0x7f00_0001 } else { (10 << 24) | ((n / 250) << 16) | ((n % 250) << 8) | 1 };
    Question { what: 4, address: [address, 0, 0, 0], port: 443, protocol: 6, ..with_path(kind::CONNECT, "") }
}
