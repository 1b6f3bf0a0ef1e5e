//! Compiled policies in the kernel: headers by slot, tables in the arena.

use std::mem::offset_of;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use sallyport_sensor_abi::kernel::meta;
use sallyport_sensor_abi::policy::{Automaton, EXEC_INDICES, Net, PolicyHeader, file_op, operation};
use sallyport_sensor_abi::{ARENA_BLOCK, ARENA_BLOCKS, ArenaBlock, MAX_POLICIES};

use super::arena::{Arena, Region};
use super::mapped::{Mapped, grace_period};
use super::{Kernel, KernelError, LoadedPolicy};

/// The maps and who owns which part of them.
#[derive(Debug)]
pub(super) struct Policies {
    headers: Mapped<PolicyHeader>,
    arena: Mapped<ArenaBlock>,
    meta: Mapped<u64>,
    book: Mutex<Book>,
}

#[derive(Debug)]
struct Book {
    arena: Arena,
    /// Something was freed since the last grace period: a program may still be reading it.
    freed: bool,
}

const GENERATION: usize = offset_of!(PolicyHeader, generation);

impl Policies {
    /// Takes stock of what is loaded.
    pub(super) fn new(headers: Mapped<PolicyHeader>, arena: Mapped<ArenaBlock>, meta: Mapped<u64>) -> Self {
        let loaded =
            (0..headers.len()).map(|slot| headers.read(slot)).filter(|header| header.generation != 0);
        let (book, bad) =
            Arena::rebuild(ARENA_BLOCKS, loaded.map(|header| Region::of(header.base, header.words)));
        for region in bad {
            tracing::error!(
                ?region,
                "a loaded policy overlaps another; sessions with it will be given new ones"
            );
        }
        Self { headers, arena, meta, book: Mutex::new(Book { arena: book, freed: true }) }
    }

    fn is_loaded(&self, slot: u32) -> bool {
        slot < self.headers.len() && self.headers.double_word(slot, GENERATION).load(Ordering::SeqCst) != 0
    }

    fn load(&self, header: &PolicyHeader, words: &[u32]) -> Result<LoadedPolicy, KernelError> {
        check(header, words)?;
        let count =
            u32::try_from(words.len()).map_err(|_| KernelError::BadPolicy("it has too many words"))?;
        let mut book = self.book.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if book.freed {
            grace_period();
            book.freed = false;
        }
        let slot = (0..self.headers.len())
            .find(|slot| !self.is_loaded(*slot))
            .ok_or(KernelError::Full { what: "compiled policies", limit: MAX_POLICIES })?;
        let region = match self.with_these_words(&book.arena, words) {
            Some(region) => {
                book.arena.claim(region);
                region
            }
            None => self.write(&mut book.arena, words, count)?,
        };
        let generation = self.meta.double_word(meta::POLICY_GENERATION, 0).fetch_add(1, Ordering::SeqCst) + 1;
        // The generation goes last: with 0 the slot denies everything.
        self.headers
            .write(slot, &PolicyHeader { generation: 0, base: region.base(), words: count, ..*header });
        self.headers.double_word(slot, GENERATION).store(generation, Ordering::SeqCst);
        Ok(LoadedPolicy { slot, generation })
    }

    /// A region in use that begins with exactly these words: compared in memory, where nobody but the sensor writes.
    fn with_these_words(&self, arena: &Arena, words: &[u32]) -> Option<Region> {
        let blocks = words.len().div_ceil(ARENA_BLOCK as usize).max(1);
        let same = |region: Region| {
            let mut chunks = words.chunks(ARENA_BLOCK as usize).zip(region.block..);
            chunks.all(|(chunk, block)| self.arena.read(block)[..chunk.len()] == *chunk)
        };
        arena.used().filter(|region| region.blocks as usize == blocks).find(|region| same(*region))
    }

    fn write(&self, arena: &mut Arena, words: &[u32], count: u32) -> Result<Region, KernelError> {
        let region = arena.allocate(Region::of(0, count).blocks).ok_or_else(|| KernelError::ArenaFull {
            words: words.len(),
            free: arena.largest_hole() as usize * ARENA_BLOCK as usize,
        })?;
        for (i, chunk) in words.chunks(ARENA_BLOCK as usize).enumerate() {
            let mut block = [0; ARENA_BLOCK as usize];
            block[..chunk.len()].copy_from_slice(chunk);
            self.arena.write(region.block + i as u32, &block);
        }
        Ok(region)
    }

    fn unload(&self, slot: u32) -> Result<(), KernelError> {
        let mut book = self.book.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !self.is_loaded(slot) {
            return Err(KernelError::NoPolicy(slot));
        }
        let header = self.headers.read(slot);
        self.headers.double_word(slot, GENERATION).store(0, Ordering::SeqCst);
        book.arena.free(Region::of(header.base, header.words));
        book.freed = true;
        Ok(())
    }
}

/// A damaged header cannot reach beyond the arena in the kernel, but could read another policy's tables.
pub(super) fn check(header: &PolicyHeader, words: &[u32]) -> Result<(), KernelError> {
    let inside = |index: u32, rows: u64| u64::from(index) + rows <= words.len() as u64;
    let automaton = |automaton: &Automaton| {
        automaton.stride > 0
            && automaton.classes > 0
            && inside(automaton.start, automaton.stride.into())
            && automaton.symbols.iter().all(|symbol| u32::from(*symbol) < automaton.stride)
    };
    if ![&header.path, &header.file, &header.caller].into_iter().all(automaton) {
        return Err(KernelError::BadPolicy("an automaton points outside its tables"));
    }
    let product =
        |factors: &[u32]| factors.iter().try_fold(1, |n: u64, factor| n.checked_mul((*factor).into()));
    let net = |net: &Net| {
        let protocols = u32::from(net.protocols.iter().copied().max().unwrap_or(0)) + 1;
        let entries = product(&[protocols, net.port_classes, net.address_classes]);
        entries.is_some_and(|n| n > 0 && inside(net.table, n))
            && [net.address4, net.address6, net.port].iter().all(|row| inside(*row, 16))
    };
    let callers = header.caller.classes;
    let table = |at: u32, factors: &[u32]| product(factors).is_some_and(|n| inside(at, n));
    let tables = table(header.exec_table, &[header.path.classes, EXEC_INDICES, callers])
        && table(header.file_table, &[file_op::COUNT, header.file.classes, 2, callers])
        && table(header.system_table, &[operation::COUNT, 2, callers])
        && inside(header.args_rows, 0)
        && net(&header.connect)
        && net(&header.listen);
    if !tables {
        return Err(KernelError::BadPolicy("a table lies outside its words"));
    }
    Ok(())
}

impl Kernel {
    /// Loads a compiled policy (`KernelPolicy::header` and `KernelPolicy::arena`). No session uses it yet.
    ///
    /// Can block for some milliseconds.
    pub fn load_policy(&self, header: &PolicyHeader, words: &[u32]) -> Result<LoadedPolicy, KernelError> {
        self.policies.load(header, words)
    }

    /// The policies that are loaded, also those of an earlier sensor.
    pub fn policies(&self) -> Vec<LoadedPolicy> {
        let headers = &self.policies.headers;
        (0..headers.len())
            .map(|slot| LoadedPolicy {
                slot,
                generation: headers.double_word(slot, GENERATION).load(Ordering::SeqCst),
            })
            .filter(|loaded| loaded.generation != 0)
            .collect()
    }

    /// Forgets a policy that no session uses.
    pub fn unload_policy(&self, slot: u32) -> Result<(), KernelError> {
        if self.sessions().iter().any(|session| session.policy_slot == slot) {
            return Err(KernelError::PolicyInUse(slot));
        }
        self.policies.unload(slot)
    }

    pub(super) fn require_policy(&self, slot: u32) -> Result<(), KernelError> {
        if self.policies.is_loaded(slot) { Ok(()) } else { Err(KernelError::NoPolicy(slot)) }
    }
}
