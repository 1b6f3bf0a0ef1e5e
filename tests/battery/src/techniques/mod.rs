//! All techniques, by what they are about.

mod argv;
mod changes;
mod code;
mod exec;
mod files;
mod guard;
mod inodes;
mod kernel;
mod lineage;
mod network;
mod ports;
mod processes;
mod reach;
mod sockets;
mod starve;
mod unix;

use crate::technique::Technique;

/// Every technique there is, in the order of the table.
pub(crate) fn all() -> Vec<Technique> {
    [
        exec::TECHNIQUES,
        argv::TECHNIQUES,
        code::TECHNIQUES,
        network::TECHNIQUES,
        sockets::TECHNIQUES,
        ports::TECHNIQUES,
        unix::TECHNIQUES,
        files::TECHNIQUES,
        changes::TECHNIQUES,
        inodes::TECHNIQUES,
        lineage::TECHNIQUES,
        processes::TECHNIQUES,
        kernel::TECHNIQUES,
        reach::TECHNIQUES,
        guard::TECHNIQUES,
        starve::TECHNIQUES,
    ]
    .concat()
}
