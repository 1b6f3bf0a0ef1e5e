//! Minimising automata: states that no input can tell apart become one, and symbols that make no difference.

use std::collections::HashMap;

use super::Automaton;

impl Automaton {
    /// Gives states the classes that `merged` maps theirs to, and merges what can no longer be told apart
    /// (Hopcroft's algorithm); then merges symbols that make no difference in any state.
    pub(crate) fn minimise(&self, merged: &[u32]) -> Self {
        let class: Vec<u32> = self.class.iter().map(|class| merged[*class as usize]).collect();
        let block_of = self.partition(&class);
        let n_blocks = block_of.iter().max().map_or(0, |max| *max as usize + 1);
        let mut representative = vec![u32::MAX; n_blocks];
        for (state, block) in block_of.iter().enumerate() {
            let first = &mut representative[*block as usize];
            *first = (*first).min(state as u32);
        }
        let row = |block: usize| {
            let at = representative[block] as usize * self.n_symbols;
            &self.next[at..at + self.n_symbols]
        };
        // Columns: symbols with equal targets everywhere become one.
        let mut columns: HashMap<Vec<u32>, u8> = HashMap::new();
        let mut kept: Vec<usize> = Vec::new();
        let new_symbol: Vec<u8> = (0..self.n_symbols)
            .map(|symbol| {
                let column: Vec<u32> =
                    (0..n_blocks).map(|block| block_of[row(block)[symbol] as usize]).collect();
                let fresh = kept.len() as u8;
                *columns.entry(column).or_insert_with(|| {
                    kept.push(symbol);
                    fresh
                })
            })
            .collect();
        let mut symbols = [0; 256];
        for (byte, symbol) in self.symbols.iter().enumerate() {
            symbols[byte] = new_symbol[usize::from(*symbol)];
        }
        let mut next = Vec::with_capacity(n_blocks * kept.len());
        for block in 0..n_blocks {
            next.extend(kept.iter().map(|symbol| block_of[row(block)[*symbol] as usize]));
        }
        Self {
            symbols,
            n_symbols: kept.len(),
            next,
            class: representative.iter().map(|state| class[*state as usize]).collect(),
            start: block_of[self.start as usize],
        }
    }

    /// The coarsest partition of the states that respects classes and transitions.
    fn partition(&self, class: &[u32]) -> Vec<u32> {
        let n = class.len();
        let k = self.n_symbols;
        // Predecessors, by (symbol, target).
        let slot = |state: usize, symbol: usize| symbol * n + self.next[state * k + symbol] as usize;
        let mut begins = vec![0u32; n * k + 1];
        for state in 0..n {
            for symbol in 0..k {
                begins[slot(state, symbol) + 1] += 1;
            }
        }
        for i in 0..n * k {
            begins[i + 1] += begins[i];
        }
        let mut fill = begins.clone();
        let mut before = vec![0u32; n * k];
        for state in 0..n {
            for symbol in 0..k {
                let at = &mut fill[slot(state, symbol)];
                before[*at as usize] = state as u32;
                *at += 1;
            }
        }
        drop(fill);
        // Members of a block lie together; the marked ones first.
        let mut order: Vec<u32> = (0..n as u32).collect();
        order.sort_by_key(|state| class[*state as usize]);
        let mut place = vec![0u32; n];
        let mut block_of = vec![0u32; n];
        let mut blocks: Vec<(usize, usize)> = Vec::new();
        for (i, state) in order.iter().enumerate() {
            place[*state as usize] = i as u32;
            if i == 0 || class[*state as usize] != class[order[i - 1] as usize] {
                blocks.push((i, i));
            }
            let block = blocks.len() - 1;
            blocks[block].1 = i + 1;
            block_of[*state as usize] = block as u32;
        }
        let mut waiting: Vec<(u32, u32)> = Vec::new();
        let mut waits: Vec<bool> = Vec::new();
        let wait = |waiting: &mut Vec<(u32, u32)>, waits: &mut Vec<bool>, block: usize, symbol: usize| {
            if waits.len() < (block + 1) * k {
                waits.resize((block + 1) * k, false);
            }
            if !waits[block * k + symbol] {
                waits[block * k + symbol] = true;
                waiting.push((block as u32, symbol as u32));
            }
        };
        for block in 0..blocks.len() {
            for symbol in 0..k {
                wait(&mut waiting, &mut waits, block, symbol);
            }
        }
        let mut marked: Vec<usize> = vec![0; blocks.len()];
        while let Some((splitter, symbol)) = waiting.pop() {
            let (splitter, symbol) = (splitter as usize, symbol as usize);
            waits[splitter * k + symbol] = false;
            let (begin, end) = blocks[splitter];
            let mut sources: Vec<u32> = Vec::new();
            for target in &order[begin..end] {
                let at = symbol * n + *target as usize;
                sources.extend(&before[begins[at] as usize..begins[at + 1] as usize]);
            }
            let mut touched: Vec<usize> = Vec::new();
            for source in sources {
                let block = block_of[source as usize] as usize;
                if marked[block] == 0 {
                    touched.push(block);
                }
                let to = blocks[block].0 + marked[block];
                let from = place[source as usize] as usize;
                marked[block] += 1;
                order.swap(from, to);
                place[order[from] as usize] = from as u32;
                place[order[to] as usize] = to as u32;
            }
            for block in touched {
                let count = std::mem::take(&mut marked[block]);
                let (begin, end) = blocks[block];
                if count == end - begin {
                    continue;
                }
                // The smaller half becomes the new block.
                let fresh = blocks.len();
                let middle = begin + count;
                let (new, old) = if count <= end - middle {
                    ((begin, middle), (middle, end))
                } else {
                    ((middle, end), (begin, middle))
                };
                blocks[block] = old;
                blocks.push(new);
                marked.push(0);
                for state in &order[new.0..new.1] {
                    block_of[*state as usize] = fresh as u32;
                }
                for symbol in 0..k {
                    // If the old block waits, both halves must; else the smaller one suffices.
                    wait(&mut waiting, &mut waits, fresh, symbol);
                }
            }
        }
        block_of
    }
}
