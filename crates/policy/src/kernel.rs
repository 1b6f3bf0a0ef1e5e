//! A compiled policy, and the reference walker over its tables: what the kernel programs do, step by step.

use std::net::IpAddr;

use sallyport_sensor_abi::policy::{
    ARGS_EOI, ARGS_ROW_WORDS, ARGS_START, ARGS_SYMBOLS, ARGS_TABLE, Automaton, DENY, EXEC_INDEX_FILELESS,
    EXEC_INDEX_SETUID, EXEC_INDICES, INDEX_MASK, NEEDS_ARGS, Net, PolicyHeader, UNIFORM, UNJUDGED, Word,
};
use sallyport_sensor_abi::{ARGS_JUDGED, PATH_BYTES, PATH_COMPONENTS};

use crate::decide::judged_as;
use crate::question::{FileOp, Operation, Question, RuleInfo};

/// A policy compiled for one person, host and local user.
#[derive(Clone, Debug)]
pub struct KernelPolicy {
    /// Where everything lies in the arena. `generation` and `base` are 0: the loader sets them.
    pub header: PolicyHeader,
    /// The tables, in words.
    pub arena: Vec<u32>,
    /// The rules that a [`Word`]'s index names; index 0 is the default deny.
    pub rules: Vec<RuleInfo>,
    /// The literal paths, and the folders of literal beginnings of paths, that forbids on programs and files name; sorted. For
    /// the sensor to register by device and inode, so that a hard link or bind mount is no way around them.
    ///
    /// Permits are not among them: another name of a permitted file is denied anyway unless it is permitted itself.
    pub names: Vec<String>,
}

/// A program that is to start, as the kernel has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Program<'a> {
    /// The path it was reached by, then the registered names of the same file.
    pub names: &'a [&'a [u8]],
    /// The arguments as they lie in the process's memory: each one followed by a zero (the last zero may be
    /// missing).
    pub args: &'a [u8],
    /// The file has no name.
    pub fileless: bool,
    /// The file is set-uid or set-gid.
    pub setuid: bool,
    /// Path of the calling program.
    pub caller: &'a [u8],
}

impl KernelPolicy {
    /// The tables' answer to a question; none for what the kernel does not judge. Person, host and local user are
    /// those that it was compiled for.
    pub fn judge(&self, question: &Question) -> Option<Word> {
        Some(match question {
            Question::Exec { path, args, fileless, setuid, caller, .. } => {
                let args: Vec<u8> = args.iter().flat_map(|arg| arg.bytes().chain([0])).collect();
                let names = [path.as_bytes()];
                let (fileless, setuid, caller) = (*fileless, *setuid, caller.as_bytes());
                self.judge_exec(&Program { names: &names, args: &args, fileless, setuid, caller })
            }
            Question::File { op, path, fileless, caller, .. } => {
                self.judge_file(*op, &[path.as_bytes()], *fileless, caller.as_bytes())
            }
            Question::System { operation, outside, caller, .. } => {
                self.judge_system(*operation, *outside, caller.as_bytes())
            }
            Question::Connect { address, port, protocol, .. } => {
                self.judge_connect(*address, *port, *protocol)
            }
            Question::Listen { address, port, protocol, .. } => self.judge_listen(*address, *port, *protocol),
            Question::OpenSession { .. } | Question::Gateway { .. } => return None,
        })
    }

    /// Judges the start of a program. Of several names the first denial counts, else the first name.
    pub fn judge_exec(&self, program: &Program<'_>) -> Word {
        let flags =
            u32::from(program.fileless) * EXEC_INDEX_FILELESS + u32::from(program.setuid) * EXEC_INDEX_SETUID;
        let judged = |name: &[u8]| {
            let caller = self.caller(program.caller)?;
            let class = self.path_class(&self.header.path, name)?;
            let index = (class * EXEC_INDICES + flags) * self.header.caller.classes + caller;
            let word = self.read(self.header.exec_table, index)?;
            if word & NEEDS_ARGS == 0 { Some(word) } else { self.judge_args(word & INDEX_MASK, program.args) }
        };
        first_denial(program.names, judged)
    }

    /// The decision of a row of arguments.
    fn judge_args(&self, row: u32, args: &[u8]) -> Option<Word> {
        let args = args.strip_suffix(&[0]).unwrap_or(args);
        if args.len() > ARGS_JUDGED {
            return None;
        }
        let row = self.header.args_rows + row * ARGS_ROW_WORDS;
        let mut state = self.read(row, ARGS_START)?;
        for byte in args {
            let four = self.read(row, ARGS_SYMBOLS + u32::from(*byte) / 4)?;
            state = self.read(state, four >> (u32::from(*byte) % 4 * 8) & 0xff)?;
        }
        let class = self.read(state, self.read(row, ARGS_EOI)?)?;
        self.read(self.read(row, ARGS_TABLE)?, class)
    }

    /// Judges what is done to a file. `names`: the path it was reached by, then the registered names of the same file.
    pub fn judge_file(&self, op: FileOp, names: &[&[u8]], fileless: bool, caller: &[u8]) -> Word {
        let op = op.number();
        let uniform = self.header.uniform[op as usize];
        if uniform & UNIFORM != 0 {
            return uniform & !UNIFORM;
        }
        let judged = |name: &[u8]| {
            let caller = self.caller(caller)?;
            let class = self.path_class(&self.header.file, name)?;
            let row = (op * self.header.file.classes + class) * 2 + u32::from(fileless);
            self.read(self.header.file_table, row * self.header.caller.classes + caller)
        };
        first_denial(names, judged)
    }

    /// Judges what is asked of the system.
    pub fn judge_system(&self, operation: Operation, outside: bool, caller: &[u8]) -> Word {
        let judged = || {
            let caller = self.caller(caller)?;
            let row = operation.number() * 2 + u32::from(outside);
            self.read(self.header.system_table, row * self.header.caller.classes + caller)
        };
        judged().unwrap_or(DENY | UNJUDGED)
    }

    /// Judges a connection or an addressed datagram. `protocol` is the IP protocol number.
    pub fn judge_connect(&self, address: IpAddr, port: u16, protocol: u8) -> Word {
        self.judge_net(&self.header.connect, judged_as(address), port, protocol)
    }

    /// Judges where a socket is bound or listens.
    pub fn judge_listen(&self, address: IpAddr, port: u16, protocol: u8) -> Word {
        self.judge_net(&self.header.listen, address.to_canonical(), port, protocol)
    }

    fn judge_net(&self, net: &Net, address: IpAddr, port: u16, protocol: u8) -> Word {
        let judged = || {
            let address = match address {
                IpAddr::V4(address) => self.descend(net.address4, &address.octets())?,
                IpAddr::V6(address) => self.descend(net.address6, &address.octets())?,
            };
            let port = self.descend(net.port, &port.to_be_bytes())?;
            let protocol = u32::from(net.protocols[usize::from(protocol)]);
            let row = protocol * net.port_classes + port;
            self.read(net.table, row * net.address_classes + address)
        };
        judged().unwrap_or(DENY | UNJUDGED)
    }

    /// The rule that a decision names.
    pub fn rule(&self, word: Word) -> Option<&RuleInfo> {
        self.rules.get((word & INDEX_MASK) as usize)
    }

    /// Class of a calling program.
    pub(crate) fn caller(&self, path: &[u8]) -> Option<u32> {
        if self.header.caller.classes <= 1 { Some(0) } else { self.path_class(&self.header.caller, path) }
    }

    /// None if the path is too long or too deep.
    pub(crate) fn path_class(&self, automaton: &Automaton, path: &[u8]) -> Option<u32> {
        let depth = path.iter().filter(|byte| **byte == b'/').count();
        let abstract_socket = path.first() == Some(&b'@');
        if path.len() > PATH_BYTES || depth > PATH_COMPONENTS && !abstract_socket {
            return None;
        }
        self.walk(automaton, path)
    }

    fn walk(&self, automaton: &Automaton, bytes: &[u8]) -> Option<u32> {
        let mut state = automaton.start;
        for byte in bytes {
            state = self.read(state, u32::from(automaton.symbols[usize::from(*byte)]))?;
        }
        self.read(state, automaton.eoi())
    }

    pub(crate) fn descend(&self, root: u32, bytes: &[u8]) -> Option<u32> {
        let mut row = root;
        for byte in bytes {
            row = self.read(row, u32::from(byte >> 4))?;
            row = self.read(row, u32::from(byte & 15))?;
        }
        Some(row)
    }

    /// None outside of the tables: never with what [`crate::Policy::compile`] made.
    pub(crate) fn read(&self, base: u32, offset: u32) -> Option<u32> {
        self.arena.get(base.checked_add(offset)? as usize).copied()
    }
}

/// The first denial, else what the first name gave.
fn first_denial(names: &[&[u8]], judged: impl Fn(&[u8]) -> Option<Word>) -> Word {
    let words: Vec<Word> = names.iter().map(|name| judged(name).unwrap_or(DENY | UNJUDGED)).collect();
    let denial = words.iter().find(|word| **word & DENY != 0);
    *denial.or(words.first()).unwrap_or(&(DENY | UNJUDGED))
}
