//! The programs: which there are, how each is loaded and where it is attached.

use std::fs::File;
use std::path::Path;

use aya::programs::{
    CgroupAttachMode, CgroupSock, CgroupSockAddr, Lsm, Program, ProgramError, RawTracePoint, links::FdLink,
};
use aya::{Btf, Ebpf};

use super::{KernelError, Mode};

/// Where a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    RawTracepoint(&'static str),
    /// In tracepoint mode only, on kernels that have it.
    OptionalRawTracepoint(&'static str),
    /// On the root of the cgroup2 hierarchy, so on everything.
    CgroupAddress,
    CgroupSocket,
    Lsm(&'static str),
    /// A hook that some kernels lack, and what is then not judged.
    OptionalLsm(&'static str, &'static str),
    /// The second hook, on kernels that lack the first, which is optional.
    InPlaceOf(&'static str, &'static str),
}

/// Enforcement first: nothing may be tagged by fork before it would be judged.
const PROGRAMS: &[(&str, Hook)] = &[
    ("sally_exec_check", Hook::Lsm("bprm_check_security")),
    ("sally_socket_family", Hook::Lsm("socket_create")),
    ("sally_exec", Hook::RawTracepoint("sched_process_exec")),
    ("sally_connect4", Hook::CgroupAddress),
    ("sally_connect6", Hook::CgroupAddress),
    ("sally_sendmsg4", Hook::CgroupAddress),
    ("sally_sendmsg6", Hook::CgroupAddress),
    ("sally_socket", Hook::CgroupSocket),
    ("sally_exec_prepare", Hook::OptionalRawTracepoint("sched_prepare_exec")),
    // Before what it counts down is counted.
    ("sally_free", Hook::RawTracepoint("sched_process_free")),
    ("sally_exit", Hook::RawTracepoint("sched_process_exit")),
    ("sally_fork", Hook::RawTracepoint("sched_process_fork")),
];

/// All programs, those of [`super::hooks`] first.
pub(super) fn programs() -> impl Iterator<Item = (&'static str, Hook)> {
    super::hooks::SYSTEM.iter().chain(super::file_hooks::FILES).chain(PROGRAMS).copied()
}

/// The programs that `mode` attaches on this kernel.
pub(super) fn wanted(mode: Mode) -> impl Iterator<Item = (&'static str, Hook)> {
    programs().filter(move |(_, hook)| hook.is_of(mode) && !hook.is_missing())
}

/// Their names.
pub(super) fn names(mode: Mode) -> impl Iterator<Item = &'static str> {
    wanted(mode).map(|(name, _)| name)
}

/// Loads and attaches everything of `mode` and pins it in the two folders. Nothing is detached when it fails
/// half-way: the caller removes the folders.
pub(super) fn attach_all(
    ebpf: &mut Ebpf,
    mode: Mode,
    cgroup: &File,
    links: &Path,
    programs: &Path,
) -> Result<(), KernelError> {
    for folder in [links, programs] {
        std::fs::create_dir_all(folder)
            .map_err(|source| KernelError::Pin { path: folder.into(), source: source.into() })?;
    }
    let btf = match mode {
        Mode::Lsm => Some(Btf::from_sys_fs().map_err(|error| KernelError::Load(error.into()))?),
        Mode::Tracepoint => None,
    };
    // All are loaded before the first is attached, so a refused program changes nothing.
    for (name, hook) in wanted(mode) {
        let program = ebpf.program_mut(name).ok_or(KernelError::Missing { name })?;
        load(program, hook, btf.as_ref()).map_err(|error| refused(name, error))?;
        let path = programs.join(name);
        program.pin(&path).map_err(|source| KernelError::Pin { path, source: source.into() })?;
    }
    for (name, hook) in wanted(mode) {
        let program = ebpf.program_mut(name).ok_or(KernelError::Missing { name })?;
        let link = attach(program, hook, cgroup).map_err(|source| KernelError::Attach { name, source })?;
        let path = links.join(name);
        link.pin(&path).map_err(|source| KernelError::Pin { path, source: source.into() })?;
    }
    Ok(())
}

pub(super) fn load(program: &mut Program, hook: Hook, btf: Option<&Btf>) -> Result<(), ProgramError> {
    match hook {
        Hook::RawTracepoint(_) | Hook::OptionalRawTracepoint(_) => {
            TryInto::<&mut RawTracePoint>::try_into(program)?.load()
        }
        Hook::CgroupAddress => TryInto::<&mut CgroupSockAddr>::try_into(program)?.load(),
        Hook::CgroupSocket => TryInto::<&mut CgroupSock>::try_into(program)?.load(),
        Hook::Lsm(hook) | Hook::OptionalLsm(hook, _) | Hook::InPlaceOf(_, hook) => {
            let btf = btf.ok_or(ProgramError::NotLoaded)?;
            TryInto::<&mut Lsm>::try_into(program)?.load(hook, btf)
        }
    }
}

type AttachError = Box<dyn std::error::Error + Send + Sync>;

fn attach(program: &mut Program, hook: Hook, cgroup: &File) -> Result<FdLink, AttachError> {
    // Links take no flags and are always beside others' programs; ours also run for cgroups below that have their own.
    let beside = CgroupAttachMode::Single;
    Ok(match hook {
        Hook::RawTracepoint(name) | Hook::OptionalRawTracepoint(name) => {
            let program: &mut RawTracePoint = program.try_into()?;
            let link = program.attach(name)?;
            program.take_link(link)?.into()
        }
        Hook::CgroupAddress => {
            let program: &mut CgroupSockAddr = program.try_into()?;
            let link = program.attach(cgroup, beside)?;
            program.take_link(link)?.try_into()?
        }
        Hook::CgroupSocket => {
            let program: &mut CgroupSock = program.try_into()?;
            let link = program.attach(cgroup, beside)?;
            program.take_link(link)?.try_into()?
        }
        Hook::Lsm(_) | Hook::OptionalLsm(..) | Hook::InPlaceOf(..) => {
            let program: &mut Lsm = program.try_into()?;
            let link = program.attach()?;
            program.take_link(link)?.into()
        }
    })
}

/// Tries to load the LSM program, to be sure; nothing is attached.
pub(super) fn try_lsm(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    let btf = Btf::from_sys_fs().map_err(|error| KernelError::Load(error.into()))?;
    let name = "sally_socket_family";
    let program = ebpf.program_mut(name).ok_or(KernelError::Missing { name })?;
    load(program, Hook::Lsm("socket_create"), Some(&btf)).map_err(|error| refused(name, error))
}

/// The end of a verifier log says why.
const LOG_LINES: usize = 12;

pub(super) fn refused(name: &'static str, error: ProgramError) -> KernelError {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            // For developers: the whole log, which can be megabytes.
            tracing::debug!(program = name, %log, "verifier log");
            let lines: Vec<_> = log.lines().collect();
            let log = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
            KernelError::Refused { name, log, source: io_error.into() }
        }
        other => KernelError::Refused { name, log: "see the cause".into(), source: other.into() },
    }
}
