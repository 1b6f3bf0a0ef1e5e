//! `bpf()` as an attacker calls it, and a map, a program and a link that stand for the sensor's.

use std::io::Result;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::sys::{self, at, call, call_fd, fd};

/// What `bpf()` is asked for, as far as it is needed: room for every command's attributes.
type Attributes = [u32; 32];

const MAP_CREATE: usize = 0;
const MAP_LOOKUP: usize = 1;
const MAP_UPDATE: usize = 2;
const PROG_LOAD: usize = 5;
const OBJ_PIN: usize = 6;
const OBJ_GET: usize = 7;
const MAP_GET_FD_BY_ID: usize = 14;
const INFO_BY_FD: usize = 15;
const LINK_CREATE: usize = 28;
const LINK_GET_FD_BY_ID: usize = 30;
const LINK_DETACH: usize = 34;

fn bpf(command: usize, attributes: &Attributes, size: usize) -> Result<usize> {
    call(libc::SYS_bpf, &[command, at(attributes), size])
}

fn bpf_fd(command: usize, attributes: &Attributes, size: usize) -> Result<OwnedFd> {
    call_fd(libc::SYS_bpf, &[command, at(attributes), size])
}

fn put(attributes: &mut Attributes, word: usize, address: usize) {
    attributes[word] = address as u32;
    attributes[word + 1] = (address >> 32) as u32;
}

/// Before 5.11 memory of `bpf()` counts against what root may lock, of which the sensor has its share: as all programs
/// that use it did then, this lifts the limit.
pub(crate) fn lift_limit() -> Result<()> {
    let unlimited = [u64::MAX, u64::MAX];
    call(libc::SYS_prlimit64, &[0, libc::RLIMIT_MEMLOCK as usize, at(&unlimited), 0]).map(drop)
}

/// An array of one `u64`.
pub(crate) fn map() -> Result<OwnedFd> {
    lift_limit()?;
    let mut attributes = [0; 32];
    // BPF_MAP_TYPE_ARRAY, key size, value size, entries.
    attributes[..4].copy_from_slice(&[2, 4, 8, 1]);
    bpf_fd(MAP_CREATE, &attributes, 48)
}

/// A socket filter that lets nothing through.
pub(crate) fn program() -> Result<OwnedFd> {
    load(1)
}

/// `return 1`, as a program of this kind.
fn load(kind: u32) -> Result<OwnedFd> {
    lift_limit()?;
    // BPF_MOV64_IMM(BPF_REG_0, 1); BPF_EXIT_INSN()
    let code: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
    let mut attributes = [0; 32];
    (attributes[0], attributes[1]) = (kind, 2);
    put(&mut attributes, 2, at(&code));
    put(&mut attributes, 4, c"GPL".as_ptr() as usize);
    bpf_fd(PROG_LOAD, &attributes, 48)
}

/// A link: a program that lets everything through, attached to a folder of the cgroup hierarchy.
pub(crate) fn link(cgroup: &Path) -> Result<OwnedFd> {
    // BPF_PROG_TYPE_CGROUP_SKB
    let program = load(8)?;
    let cgroup = sys::open(cgroup, libc::O_RDONLY | libc::O_DIRECTORY)?;
    let mut attributes = [0; 32];
    // BPF_CGROUP_INET_INGRESS is 0.
    (attributes[0], attributes[1]) = (fd(&program) as u32, fd(&cgroup) as u32);
    bpf_fd(LINK_CREATE, &attributes, 16)
}

/// Pins an object.
pub(crate) fn pin(object: &OwnedFd, path: &Path) -> Result<()> {
    let path = sys::c_path(path);
    let mut attributes = [0; 32];
    put(&mut attributes, 0, sys::text(&path));
    attributes[2] = fd(object) as u32;
    bpf(OBJ_PIN, &attributes, 16).map(drop)
}

/// Opens a pinned object.
pub(crate) fn pinned(path: &Path) -> Result<OwnedFd> {
    let path = sys::c_path(path);
    let mut attributes = [0; 32];
    put(&mut attributes, 0, sys::text(&path));
    bpf_fd(OBJ_GET, &attributes, 16)
}

/// Writes the map's value.
pub(crate) fn write(map: &OwnedFd, value: u64) -> Result<()> {
    on_element(map, MAP_UPDATE, at(&value))
}

/// Reads it.
pub(crate) fn read(map: &OwnedFd) -> Result<u64> {
    let mut value = 0u64;
    on_element(map, MAP_LOOKUP, (&raw mut value) as usize)?;
    Ok(value)
}

fn on_element(map: &OwnedFd, command: usize, value: usize) -> Result<()> {
    let key = 0u32;
    let mut attributes = [0; 32];
    attributes[0] = fd(map) as u32;
    put(&mut attributes, 2, at(&key));
    put(&mut attributes, 4, value);
    bpf(command, &attributes, 32).map(drop)
}

/// Opens a map or link by its number.
fn by_number(open: usize, number: u32) -> Result<OwnedFd> {
    let mut attributes = [0; 32];
    attributes[0] = number;
    bpf_fd(open, &attributes, 12)
}

/// Opens a map by its number.
pub(crate) fn map_by_number(number: u32) -> Result<OwnedFd> {
    by_number(MAP_GET_FD_BY_ID, number)
}

/// Opens a link by its number.
pub(crate) fn link_by_number(number: u32) -> Result<OwnedFd> {
    by_number(LINK_GET_FD_BY_ID, number)
}

/// Takes a link's program off.
pub(crate) fn detach(link: &OwnedFd) -> Result<()> {
    let mut attributes = [0; 32];
    attributes[0] = fd(link) as u32;
    bpf(LINK_DETACH, &attributes, 4).map(drop)
}

/// Whether a link's program is still attached to a cgroup.
pub(crate) fn attached(link: &OwnedFd) -> Result<bool> {
    // `struct bpf_link_info`: kind, number, program's number; then the cgroup's.
    Ok(information(link)?[4..6] != [0, 0])
}

/// A map's or link's number.
pub(crate) fn number(object: &OwnedFd) -> Result<u32> {
    // The second word of both.
    Ok(information(object)?[1])
}

fn information(object: &OwnedFd) -> Result<[u32; 32]> {
    let mut information = [0u32; 32];
    let mut attributes = [0; 32];
    (attributes[0], attributes[1]) = (fd(object) as u32, size_of_val(&information) as u32);
    put(&mut attributes, 2, information.as_mut_ptr() as usize);
    bpf(INFO_BY_FD, &attributes, 16)?;
    Ok(information)
}
