//! The decision tables over files and operations: from classes to a word.

use sallyport_sensor_abi::{
    event::EXEC_FILELESS,
    policy::{UNIFORM, Word, file_op, operation},
};

use crate::{
    judge::{Judge, arena},
    read::opaque,
    scratch::Scratch,
};

/// The word for doing `op` to the file in the area, whose path is of this class.
#[inline(always)]
pub(crate) fn file(area: *const Scratch, judge: &Judge, op: u32, class: u32, caller: u32) -> Option<Word> {
    if let Some(word) = uniform(judge, op) {
        return Some(word);
    }
    // SAFETY: `area` is claimed; the policy is an entry of an array map.
    unsafe {
        let policy = judge.policy;
        let fileless = (*area).flags & EXEC_FILELESS;
        let row = op
            .wrapping_mul((*policy).file.classes)
            .wrapping_add(class)
            .wrapping_mul(2)
            .wrapping_add(fileless);
        let entry = row.wrapping_mul((*policy).caller.classes).wrapping_add(caller);
        arena((*policy).base.wrapping_add((*policy).file_table).wrapping_add(entry))
    }
}

/// The word if every file is treated alike, so that no path need be known.
#[inline(always)]
pub(crate) fn uniform(judge: &Judge, op: u32) -> Option<Word> {
    if op >= file_op::COUNT {
        return None;
    }
    let op = opaque(u64::from(op)) & 15;
    if op >= u64::from(file_op::COUNT) {
        return None;
    }
    // SAFETY: within the array; the policy is an entry of an array map.
    let word = unsafe { *(&raw const (*judge.policy).uniform).cast::<Word>().add(op as usize) };
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
