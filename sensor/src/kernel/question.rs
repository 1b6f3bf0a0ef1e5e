//! Questions to the kernel programs without any session or process: for tests that compare their answers with Cedar's.
//!
//! The programs are loaded once more, with maps of their own that nobody else sees, and attached nowhere.

use aya::Ebpf;
use aya::maps::{Map, MapData};
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun as _};
use sallyport_sensor_abi::policy::PolicyHeader;
use sallyport_sensor_abi::question::{BATCH, Question, kind};
use sallyport_sensor_abi::{ARENA_BLOCK, ARENA_BLOCKS, ArenaBlock, MAX_POLICIES};

use super::mapped::Mapped;
use super::{KernelError, load, offsets};

const PROGRAM: &str = "sally_question";
/// No cause is that.
const UNANSWERED: u32 = u32::MAX;

/// The programs, with one policy that answers.
#[derive(Debug)]
pub struct Questions {
    ebpf: Ebpf,
    headers: Mapped<PolicyHeader>,
    arena: Mapped<ArenaBlock>,
    questions: Mapped<Question>,
}

impl Questions {
    /// Loads the programs. Needs root, and 5.10.
    pub fn load() -> Result<Self, KernelError> {
        let mut ebpf = load::load_object(&offsets::read()?, None, true)?;
        let program = ebpf.program_mut(PROGRAM).ok_or(KernelError::Missing { name: PROGRAM })?;
        let program: &mut RawTracePoint =
            program.try_into().map_err(|_| KernelError::Missing { name: PROGRAM })?;
        program.load().map_err(|error| super::attach::refused(PROGRAM, error))?;
        let headers = Mapped::new(&array(&mut ebpf, "POLICIES")?, "POLICIES", MAX_POLICIES)?;
        let arena = Mapped::new(&array(&mut ebpf, "ARENA")?, "ARENA", ARENA_BLOCKS)?;
        let questions = Mapped::new(&array(&mut ebpf, "QUESTIONS")?, "QUESTIONS", BATCH)?;
        Ok(Self { ebpf, headers, arena, questions })
    }

    /// Puts the policy that answers from now on into slot 0.
    pub fn set_policy(&mut self, header: &PolicyHeader, words: &[u32]) {
        for (block, chunk) in words.chunks(ARENA_BLOCK as usize).enumerate() {
            let mut whole = [0; ARENA_BLOCK as usize];
            whole[..chunk.len()].copy_from_slice(chunk);
            self.arena.write(block as u32, &whole);
        }
        let words = words.len() as u32;
        self.headers.write(0, &PolicyHeader { generation: 1, base: 0, words, ..*header });
    }

    /// Has the questions answered, each in its place.
    pub fn ask(&mut self, questions: &mut [Question]) -> Result<(), KernelError> {
        let program = self.ebpf.program_mut(PROGRAM).ok_or(KernelError::Missing { name: PROGRAM })?;
        let program: &mut RawTracePoint =
            program.try_into().map_err(|_| KernelError::Missing { name: PROGRAM })?;
        for batch in questions.chunks_mut(BATCH as usize) {
            for (at, question) in (0..).zip(batch.iter()) {
                self.questions.write(at, &Question { cause: UNANSWERED, ..*question });
            }
            if let Some(end) = u32::try_from(batch.len()).ok().filter(|len| *len < BATCH) {
                self.questions
                    .word(end, std::mem::offset_of!(Question, kind))
                    .store(kind::NONE, std::sync::atomic::Ordering::SeqCst);
            }
            program
                .test_run(RawTracePointRunOptions::new())
                .map_err(|source| KernelError::Attach { name: PROGRAM, source: source.into() })?;
            for (at, question) in (0..).zip(batch.iter_mut()) {
                *question = self.questions.read(at);
                if question.cause == UNANSWERED {
                    return Err(KernelError::Missing { name: "an answer" });
                }
            }
        }
        Ok(())
    }
}

fn array(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, KernelError> {
    match ebpf.take_map(name) {
        Some(Map::Array(data)) => Ok(data),
        _ => Err(KernelError::Missing { name }),
    }
}
