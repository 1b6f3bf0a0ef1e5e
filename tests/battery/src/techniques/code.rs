//! Code from files: nothing of `programs`, and for the allow-list nothing but what is installed, may be mapped executable.

use crate::stage::{Outcome, Stage, root, text};
use crate::sys::{self, CODE, call, run, sh};
use crate::technique::{Person, Technique};

/// The machine's dynamic loader.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
/// A library that no program here needs otherwise.
const LIBRARY: &str = "libm.so.6";
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const READ_EXEC: i32 = libc::PROT_READ | libc::PROT_EXEC;

/// The library, copied to where nobody knows it.
fn library() -> Outcome {
    for folder in ["/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/lib64"] {
        if std::fs::copy(format!("{folder}/{LIBRARY}"), "own.so").is_ok() {
            return Ok(());
        }
    }
    Err(std::io::Error::other("no such library here"))
}

/// A file of machine code.
fn code_file() -> std::io::Result<std::os::fd::OwnedFd> {
    let mut page = CODE.to_vec();
    page.resize(4096, 0);
    std::fs::write("code", page)?;
    sys::open("code", libc::O_RDWR)
}

/// The proof that code ran, made by whoever ran it.
fn proof() -> Outcome {
    std::fs::write("marker", "")
}

/// Whether the library's name was found in a process's map of its memory, which the technique wrote down.
fn preloaded(_: &Stage) -> bool {
    std::fs::read_to_string(root("work/maps"))
        .is_ok_and(|maps| maps.lines().any(|line| line.contains("own.so") && line.contains("r-xp")))
}

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique::code("program started by the dynamic loader", |_| {
        run(LOADER, &["ld.so", &text("programs/touch"), "marker"])
    }),
    Technique::code("program started by a copy of the dynamic loader", |_| {
        std::fs::copy(LOADER, "loader")?;
        run("./loader", &["loader", "/usr/bin/touch", "marker"])
    })
    .by(Person::Allowlisted)
    .both(),
    Technique::code("program given to the dynamic loader as a descriptor", |_| {
        sh(&format!("{LOADER} /proc/self/fd/7 marker 7< {}", text("programs/touch")))
    }),
    Technique::code("copy started by the dynamic loader (allow-list)", |_| {
        std::fs::copy("/usr/bin/touch", "innocent")?;
        run(LOADER, &["ld.so", "./innocent", "marker"])
    })
    .by(Person::Allowlisted),
    Technique::code("library of one's own by --preload", |_| {
        library()?;
        sh(&format!("{LOADER} --preload ./own.so /usr/bin/cat /proc/self/maps > maps"))
    })
    .by(Person::Allowlisted)
    .happened(preloaded),
    Technique::code("library of one's own by LD_PRELOAD", |_| {
        library()?;
        sh("LD_PRELOAD=$PWD/own.so /usr/bin/cat /proc/self/maps > maps")
    })
    .by(Person::Allowlisted)
    .happened(preloaded),
    Technique::code("library of one's own by dlopen", |_| {
        library()?;
        sys::dlopen("./own.so")?;
        proof()
    })
    .by(Person::Allowlisted),
    Technique::code("mmap of a file, executable", |_| {
        let file = code_file()?;
        sys::call_code(sys::map(4096, READ_EXEC, libc::MAP_PRIVATE, Some(&file))?)?;
        proof()
    })
    .by(Person::Allowlisted),
    Technique::code("mprotect of a private file mapping", |_| {
        let file = code_file()?;
        let start = sys::map(4096, libc::PROT_READ, libc::MAP_PRIVATE, Some(&file))?;
        call(libc::SYS_mprotect, &[start as usize, 4096, READ_EXEC as usize])?;
        sys::call_code(start)?;
        proof()
    })
    .by(Person::Allowlisted),
    Technique::code("pkey_mprotect of a shared file mapping", |_| {
        let file = code_file()?;
        let start = sys::map(4096, READ_WRITE, libc::MAP_SHARED, Some(&file))?;
        call(libc::SYS_pkey_mprotect, &[start as usize, 4096, READ_EXEC as usize, usize::MAX])?;
        sys::call_code(start)?;
        proof()
    })
    .by(Person::Allowlisted),
    Technique::code("reading implies executing (personality)", |_| {
        // READ_IMPLIES_EXEC
        call(libc::SYS_personality, &[0x040_0000])?;
        let file = code_file()?;
        sys::call_code(sys::map(4096, libc::PROT_READ, libc::MAP_PRIVATE, Some(&file))?)?;
        proof()
    })
    .by(Person::Allowlisted),
    Technique::code("memfd mapped executable", |_| {
        let fd = sys::call_fd(libc::SYS_memfd_create, &[c"code".as_ptr() as usize, 0])?;
        call(libc::SYS_write, &[sys::fd(&fd), CODE.as_ptr() as usize, CODE.len()])?;
        sys::call_code(sys::map(4096, READ_EXEC, libc::MAP_PRIVATE, Some(&fd))?)?;
        proof()
    })
    .by(Person::Allowlisted),
    Technique::code("System V shared memory, executable", |_| {
        let segment = call(libc::SYS_shmget, &[0, 4096, 0o1777])?;
        let writable = call(libc::SYS_shmat, &[segment, 0, 0])?;
        sys::put(writable as *mut u8, &CODE);
        // SHM_EXEC
        let start = call(libc::SYS_shmat, &[segment, 0, 0o100_000])?;
        call(libc::SYS_shmctl, &[segment, libc::IPC_RMID as usize, 0])?;
        sys::call_code(start as *mut u8)?;
        proof()
    })
    .by(Person::Allowlisted)
    .unclaimed("memory without a file, as in the next row"),
    Technique::code("code written into anonymous memory", |_| {
        let start =
            sys::map(4096, READ_WRITE | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)?;
        sys::put(start, &CODE);
        sys::call_code(start)?;
        proof()
    })
    .by(Person::Allowlisted)
    .unclaimed("this is how just-in-time compilers work; which programs may start is what policy says"),
    Technique::code("program named as another's loader (PT_INTERP)", |_| {
        super::exec::script("innocent", "")?;
        std::fs::write("innocent", crate::elf::with_loader(&text("programs/mark")))?;
        run("./innocent", &["innocent", "marker"])
    }),
    Technique::code("remap_file_pages, and reading implies executing", |_| {
        let file = code_file()?;
        let start = sys::map(8192, READ_WRITE, libc::MAP_SHARED, Some(&file))?;
        call(libc::SYS_personality, &[0x040_0000])?;
        call(libc::SYS_remap_file_pages, &[start as usize, 4096, 0, 0, 0])?;
        sys::call_code(start)?;
        proof()
    })
    .always()
    .by(Person::Allowlisted),
    Technique::code("code written over a mapped program (/proc/self/mem)", |_| {
        let page = sys::map(4096, READ_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)?;
        let memory = sys::open("/proc/self/mem", libc::O_RDWR)?;
        call(libc::SYS_pwrite64, &[sys::fd(&memory), CODE.as_ptr() as usize, CODE.len(), page as usize])?;
        sys::call_code(page)?;
        proof()
    })
    .by(Person::Allowlisted)
    .unclaimed("this is how just-in-time compilers work; which programs may start is what policy says"),
];
