//! What the verifier of the running kernel says of each program; nothing is attached, and nothing stays once this returns.

use aya::Btf;
use aya::programs::ProgramError;

use super::{KernelError, Mode, attach, load, offsets};

/// One program before the verifier.
#[derive(Debug, Clone)]
pub struct Verified {
    /// The program's name.
    pub program: &'static str,
    /// Instructions that the verifier looked at, where the kernel says so (5.16 and newer); else why it refused.
    pub outcome: Result<Option<u32>, String>,
}

/// Loads every program that `mode` would attach on this kernel, on maps of its own, whatever becomes of the others.
pub fn verify(mode: Mode) -> Result<Vec<Verified>, KernelError> {
    let offsets = offsets::read()?;
    let mut ebpf = load::load_object(&offsets, None, false)?;
    let btf = Btf::from_sys_fs().map_err(|error| KernelError::Load(error.into()))?;
    let mut all = Vec::new();
    for (name, hook) in attach::wanted(mode) {
        let program = ebpf.program_mut(name).ok_or(KernelError::Missing { name })?;
        let outcome = match attach::load(program, hook, Some(&btf)) {
            Ok(()) => Ok(program.info().ok().and_then(|info| info.verified_instruction_count())),
            Err(ProgramError::LoadError { io_error, verifier_log }) => {
                Err(format!("{io_error}\n{verifier_log}"))
            }
            Err(other) => Err(super::probe::chain(&other)),
        };
        all.push(Verified { program: name, outcome });
    }
    Ok(all)
}
