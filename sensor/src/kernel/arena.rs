//! Which blocks of the arena belong to which compiled policies. Pure bookkeeping, first fit. Policies with the same tables share
//! a region: those of people who may do the same.

use sallyport_sensor_abi::ARENA_BLOCK;

/// A run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    /// First block.
    pub(super) block: u32,
    /// Number of blocks.
    pub(super) blocks: u32,
}

impl Region {
    /// The region that holds `words` words from `base` on.
    pub(super) fn of(base: u32, words: u32) -> Self {
        Self { block: base / ARENA_BLOCK, blocks: words.div_ceil(ARENA_BLOCK).max(1) }
    }

    /// First word.
    pub(super) fn base(self) -> u32 {
        self.block * ARENA_BLOCK
    }

    fn end(self) -> u32 {
        self.block + self.blocks
    }
}

/// Used regions, sorted and disjoint, each with the number of policies that use it.
#[derive(Debug)]
pub(super) struct Arena {
    blocks: u32,
    used: Vec<(Region, u32)>,
}

impl Arena {
    /// An arena of `blocks` blocks with these regions in use. Regions that overlap or lie outside are dropped:
    /// their policies are not to be trusted; `Err` names them.
    pub(super) fn rebuild(blocks: u32, regions: impl IntoIterator<Item = Region>) -> (Self, Vec<Region>) {
        let mut arena = Self { blocks, used: Vec::new() };
        let mut bad = Vec::new();
        for region in regions {
            if !arena.claim(region) {
                bad.push(region);
            }
        }
        (arena, bad)
    }

    fn take(&mut self, region: Region) -> bool {
        let at = self.used.partition_point(|(used, _)| used.block < region.block);
        let fits_before = at == 0 || self.used[at - 1].0.end() <= region.block;
        let fits_after = self.used.get(at).is_none_or(|(next, _)| region.end() <= next.block);
        let inside =
            region.blocks > 0 && region.block < self.blocks && region.blocks <= self.blocks - region.block;
        let fits = fits_before && inside && fits_after;
        if fits {
            self.used.insert(at, (region, 1));
        }
        fits
    }

    /// Takes exactly this region, or shares it with those that have exactly it; false: some of it is taken otherwise, or does
    /// not exist.
    pub(super) fn claim(&mut self, region: Region) -> bool {
        match self.used.iter_mut().find(|(used, _)| *used == region) {
            Some((_, users)) => {
                *users += 1;
                true
            }
            None => self.take(region),
        }
    }

    /// Takes the first hole of `blocks` blocks.
    pub(super) fn allocate(&mut self, blocks: u32) -> Option<Region> {
        let (block, _) = self.holes().find(|(_, size)| *size >= blocks)?;
        let region = Region { block, blocks };
        self.take(region).then_some(region)
    }

    /// One user of a region less; the last one gives it back.
    pub(super) fn free(&mut self, region: Region) {
        self.used.retain_mut(|(used, users)| {
            if *used == region {
                *users -= 1;
            }
            *users > 0
        });
    }

    /// The regions in use.
    pub(super) fn used(&self) -> impl Iterator<Item = Region> + '_ {
        self.used.iter().map(|(region, _)| *region)
    }

    /// Blocks in the largest hole.
    pub(super) fn largest_hole(&self) -> u32 {
        self.holes().map(|(_, size)| size).max().unwrap_or(0)
    }

    fn holes(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let starts = std::iter::once(0).chain(self.used().map(Region::end));
        let ends = self.used().map(|used| used.block).chain(std::iter::once(self.blocks));
        starts.zip(ends).map(|(start, end)| (start, end - start)).filter(|(_, size)| *size > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(block: u32, blocks: u32) -> Region {
        Region { block, blocks }
    }

    #[test]
    fn first_fit_and_reuse() {
        let (mut arena, bad) = Arena::rebuild(10, []);
        assert!(bad.is_empty());
        let a = arena.allocate(4).expect("room");
        let b = arena.allocate(4).expect("room");
        assert_eq!((a, b), (region(0, 4), region(4, 4)));
        assert_eq!(arena.allocate(3), None);
        assert_eq!(arena.largest_hole(), 2);
        arena.free(a);
        assert_eq!(arena.allocate(3), Some(region(0, 3)));
        assert_eq!(arena.allocate(2), Some(region(8, 2)));
        assert_eq!(arena.allocate(1), Some(region(3, 1)));
        assert_eq!(arena.allocate(1), None);
    }

    #[test]
    fn a_rebuilt_arena_keeps_what_is_used() {
        let (mut arena, bad) = Arena::rebuild(8, [region(5, 2), region(1, 2)]);
        assert!(bad.is_empty());
        assert_eq!(arena.allocate(2), Some(region(3, 2)));
        assert_eq!(arena.allocate(1), Some(region(0, 1)));
        assert_eq!(arena.allocate(1), Some(region(7, 1)));
        assert_eq!(arena.allocate(1), None);
    }

    #[test]
    fn a_shared_region_is_free_when_its_last_user_is_gone() {
        let (mut arena, bad) = Arena::rebuild(4, [region(0, 3), region(0, 3)]);
        assert!(bad.is_empty(), "the same region twice is shared");
        assert!(arena.claim(region(0, 3)));
        assert!(!arena.claim(region(0, 2)) && !arena.claim(region(1, 3)), "a part of it is not");
        for _ in 0..2 {
            arena.free(region(0, 3));
            assert_eq!(arena.allocate(2), None);
        }
        arena.free(region(0, 3));
        assert_eq!(arena.allocate(4), Some(region(0, 4)));
    }

    #[test]
    fn impossible_regions_are_named() {
        let (_, bad) = Arena::rebuild(8, [region(0, 4), region(3, 2), region(7, 2), region(u32::MAX, 1)]);
        assert_eq!(bad, [region(3, 2), region(7, 2), region(u32::MAX, 1)]);
    }

    #[test]
    fn words_are_rounded_up_to_blocks() {
        assert_eq!(Region::of(2 * ARENA_BLOCK, 1), region(2, 1));
        assert_eq!(Region::of(0, ARENA_BLOCK + 1), region(0, 2));
        assert_eq!(Region::of(0, 0), region(0, 1));
    }
}
