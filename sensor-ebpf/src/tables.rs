//! The decision tables over files and operations: from classes to a word.

use sallyport_sensor_abi::{
    event::EXEC_FILELESS,
    policy::{DENY, UNIFORM, Word, file_op, operation},
};

use crate::{
    judge::{Judge, arena},
    read::opaque,
    scratch::Scratch,
};

/// The tables' word for an operation on the file whose class is given.
#[inline(always)]
pub(crate) fn file(area: *const Scratch, judge: &Judge, op: u32, class: u32, caller: u32) -> Word {
    if let Some(word) = uniform(judge, op) {
        return word;
    }
    // SAFETY: `area` is claimed; the policy is an entry of an array map.
    unsafe {
        let policy = judge.policy;
        let fileless = u32::from((*area).flags & EXEC_FILELESS != 0);
        let row = op
            .wrapping_mul((*policy).file.classes)
            .wrapping_add(class)
            .wrapping_mul(2)
            .wrapping_add(fileless);
        let entry = row.wrapping_mul((*policy).caller.classes).wrapping_add(caller);
        arena((*policy).base.wrapping_add((*policy).file_table).wrapping_add(entry)).unwrap_or(DENY)
    }
}

/// The word of an operation if every file is treated alike.
#[inline(always)]
pub(crate) fn uniform(judge: &Judge, op: u32) -> Option<Word> {
    let op = opaque(u64::from(op)) as usize;
    if op >= file_op::COUNT as usize {
        return None;
    }
    // SAFETY: the policy is an entry of an array map; `op` is in bounds.
    let word = unsafe { *(&raw const (*judge.policy).uniform).cast::<Word>().add(op) };
    (word & UNIFORM != 0).then_some(word & !UNIFORM)
}

/// The word for asking for `operation`; `outside`: 0 or 1.
#[inline(always)]
pub(crate) fn system(judge: &Judge, operation: u32, outside: u32, caller: u32) -> Option<Word> {
    if operation >= operation::COUNT || outside > 1 {
        return None;
    }
    // SAFETY: the policy is an entry of an array map.
    unsafe {
        let policy = judge.policy;
        let entry = (operation * 2 + outside).wrapping_mul((*policy).caller.classes).wrapping_add(caller);
        arena((*policy).base.wrapping_add((*policy).system_table).wrapping_add(entry))
    }
}
