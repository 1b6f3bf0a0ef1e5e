//! A compiled policy, and the reference walker over its tables: what the kernel programs do, step by step.

use std::net::IpAddr;

use sallyport_sensor_abi::policy::{Automaton, DENY, INDEX_MASK, NEEDS_ARGS, PolicyHeader, UNJUDGED, Word};
use sallyport_sensor_abi::{ARGS_JUDGED, PATH_BYTES, PATH_COMPONENTS};

use crate::decide::judged_as;
use crate::question::RuleInfo;

/// A policy compiled for one person, host and local user.
#[derive(Clone, Debug)]
pub struct KernelPolicy {
    /// Where everything lies in the arena. `generation` and `base` are 0: the loader sets them.
    pub header: PolicyHeader,
    /// The tables, in words.
    pub arena: Vec<u32>,
    /// The rules that a [`Word`]'s index names; index 0 is the default deny.
    pub rules: Vec<RuleInfo>,
}

impl KernelPolicy {
    /// Judges the start of a program. `args` are the arguments as they lie in the process's memory: each one
    /// followed by a zero (the last zero may be missing).
    pub fn judge_exec(&self, path: &[u8], args: &[u8], fileless: bool) -> Word {
        let depth = path.iter().filter(|byte| **byte == b'/').count();
        if path.len() > PATH_BYTES || depth > PATH_COMPONENTS {
            return DENY | UNJUDGED;
        }
        let judged = || {
            let class = self.walk(&self.header.path, path)?;
            let word = self.read(self.header.exec_table, class * 2 + u32::from(fileless))?;
            if word & NEEDS_ARGS == 0 {
                return Some(word);
            }
            let args = args.strip_suffix(&[0]).unwrap_or(args);
            if args.len() > ARGS_JUDGED {
                return None;
            }
            let class = self.walk(&self.header.args, args)?;
            let row = (word & INDEX_MASK) * self.header.args.classes;
            self.read(self.header.args_table, row + class)
        };
        judged().unwrap_or(DENY | UNJUDGED)
    }

    /// Judges a connection or an addressed datagram. `protocol` is the IP protocol number.
    pub fn judge_connect(&self, address: IpAddr, port: u16, protocol: u8) -> Word {
        let judged = || {
            let address = match judged_as(address) {
                IpAddr::V4(address) => self.descend(self.header.address4, &address.octets())?,
                IpAddr::V6(address) => self.descend(self.header.address6, &address.octets())?,
            };
            let port = self.descend(self.header.port, &port.to_be_bytes())?;
            let protocol = u32::from(self.header.protocols[usize::from(protocol)]);
            let row = protocol * self.header.port_classes + port;
            self.read(self.header.connect_table, row * self.header.address_classes + address)
        };
        judged().unwrap_or(DENY | UNJUDGED)
    }

    /// The rule that a decision names.
    pub fn rule(&self, word: Word) -> Option<&RuleInfo> {
        self.rules.get((word & INDEX_MASK) as usize)
    }

    fn walk(&self, automaton: &Automaton, bytes: &[u8]) -> Option<u32> {
        let mut state = automaton.start;
        for byte in bytes {
            state = self.read(state, u32::from(automaton.symbols[usize::from(*byte)]))?;
        }
        self.read(state, automaton.eoi())
    }

    fn descend(&self, root: u32, bytes: &[u8]) -> Option<u32> {
        let mut row = root;
        for byte in bytes {
            row = self.read(row, u32::from(byte >> 4))?;
            row = self.read(row, u32::from(byte & 15))?;
        }
        Some(row)
    }

    /// None outside of the tables: never with what [`crate::Policy::compile`] made.
    fn read(&self, base: u32, offset: u32) -> Option<u32> {
        self.arena.get(base.checked_add(offset)? as usize).copied()
    }
}
