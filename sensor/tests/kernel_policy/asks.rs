//! Random questions: mostly the bundle's own literals, and what nearly is one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sallyport_policy::{FileOp, Operation, Principal, Question};
use sallyport_sensor_abi::event::EXEC_FILELESS;
use sallyport_sensor_abi::policy::{file_op, operation};
use sallyport_sensor_abi::question::{self, TEXT, kind};

use crate::numbers::Random;

/// The texts, addresses and numbers in a bundle's rules.
pub(crate) struct Literals {
    texts: Vec<String>,
    addresses: Vec<IpAddr>,
    numbers: Vec<u16>,
}

impl Literals {
    pub(crate) fn of(rules: &[String]) -> Self {
        let mut texts = Vec::new();
        for rule in rules {
            // What stands between quotes; `\*` is the only escape in rules.
            texts.extend(rule.split('"').skip(1).step_by(2).map(|text| text.replace("\\*", "*")));
        }
        texts.extend(["/usr/bin/true", "a", ""].map(str::to_owned));
        let address = |text: &String| text.split('/').next()?.parse::<IpAddr>().ok();
        let mut addresses: Vec<IpAddr> = texts.iter().filter_map(address).collect();
        addresses.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
        let words = rules.iter().flat_map(|rule| rule.split(|c: char| !c.is_ascii_digit()));
        let mut numbers: Vec<u16> = words.filter_map(|word| word.parse().ok()).collect();
        numbers.extend([0, 443, 65_535]);
        Self { texts, addresses, numbers }
    }

    /// A literal, a pattern filled in, or nearly one.
    fn text(&self, random: &mut Random) -> String {
        let mut text = random.pick(&self.texts).clone();
        if text.contains('*') && !random.one_in(8) {
            let fill = match random.below(4) {
                0 => String::new(),
                1 => (*random.pick(&["a", "/", "a/b", " ", "é", "x.so"])).to_owned(),
                _ => random.pick(&self.texts).clone(),
            };
            text = text.replace('*', &fill);
        }
        if random.one_in(3) {
            let mut letters: Vec<char> = text.chars().collect();
            let at = random.below(letters.len() + 1);
            let letter = *random.pick(&['a', 'b', '/', ' ', '.', 'é', '-', 'r']);
            match random.below(4) {
                0 => letters.insert(at, letter),
                1 if at < letters.len() => drop(letters.remove(at)),
                2 if at < letters.len() => letters[at] = letter,
                _ => letters.truncate(at),
            }
            text = letters.into_iter().collect();
        }
        while text.len() > TEXT {
            text.pop();
        }
        text
    }

    fn address(&self, random: &mut Random) -> IpAddr {
        let address = *random.pick(&self.addresses);
        match (random.below(4), address) {
            // The neighbours, and another bit.
            (0, IpAddr::V4(address)) => {
                let bit = 1u32 << random.below(32);
                IpAddr::V4((u32::from(address) ^ bit).into())
            }
            (0, IpAddr::V6(address)) => IpAddr::V6((u128::from(address) ^ 1 << random.below(128)).into()),
            (1, IpAddr::V4(address)) => IpAddr::V6(address.to_ipv6_mapped()),
            (_, address) => address,
        }
    }

    fn port(&self, random: &mut Random) -> u16 {
        let port = *random.pick(&self.numbers);
        match random.below(4) {
            0 => port.wrapping_add(1),
            1 => port.wrapping_sub(1),
            2 if random.one_in(2) => random.next() as u16,
            _ => port,
        }
    }

    /// A question, as Cedar gets it.
    pub(crate) fn question(
        &self,
        random: &mut Random,
        who: &Principal,
        (host, user): (&str, &str),
    ) -> Question {
        let (principal, host, local_user) = (who.clone(), host.to_owned(), user.to_owned());
        match random.below(12) {
            0..=3 => {
                let count = random.below(5);
                let args = (0..count).map(|_| self.text(random)).collect();
                let (path, caller) = (self.text(random), self.text(random));
                let (fileless, setuid) = (random.one_in(4), random.one_in(4));
                Question::Exec { principal, host, local_user, path, args, fileless, setuid, caller }
            }
            4..=7 => {
                let op = FileOp::new(random.below(file_op::COUNT as usize) as u32).expect("an action");
                let (path, caller) = (self.text(random), self.text(random));
                Question::File { principal, host, local_user, op, path, fileless: random.one_in(4), caller }
            }
            8 => {
                let operation = random.below(operation::COUNT as usize) as u32;
                let operation = Operation::new(operation).expect("an operation");
                let (outside, caller) = (random.one_in(2), self.text(random));
                Question::System { principal, host, local_user, operation, outside, caller }
            }
            number => {
                let (address, port) = (self.address(random), self.port(random));
                let protocol = *random.pick(&[6, 6, 17, 17, 1, 58, 132, 0, 255]);
                if number == 9 {
                    Question::Listen { principal, host, local_user, address, port, protocol }
                } else {
                    Question::Connect { principal, host, local_user, address, port, protocol }
                }
            }
        }
    }
}

/// The question as the kernel program gets it. `args` keeps the arguments where the kernel will read them.
pub(crate) fn raw(question: &Question, args: &mut Vec<u8>) -> question::Question {
    let mut raw = question::Question {
        kind: kind::NONE,
        slot: 0,
        what: 0,
        flags: 0,
        mode: 0o755,
        outside: 0,
        address: [0; 4],
        port: 0,
        protocol: 0,
        args: 0,
        args_len: 0,
        path_len: 0,
        caller_len: 0,
        word: 0,
        cause: 0,
        _pad: 0,
        path: [0; TEXT],
        caller: [0; TEXT],
    };
    let mut put = |path: Option<&str>, caller: &str| {
        if let Some(path) = path {
            raw.path[..path.len()].copy_from_slice(path.as_bytes());
            raw.path_len = path.len() as u32;
        }
        raw.caller[..caller.len()].copy_from_slice(caller.as_bytes());
        raw.caller_len = caller.len() as u32;
    };
    match question {
        Question::Exec { path, args: list, fileless, setuid, caller, .. } => {
            put(Some(path), caller);
            raw.kind = kind::EXEC;
            raw.flags = if *fileless { EXEC_FILELESS } else { 0 };
            if *setuid {
                raw.mode = 0o4755;
            }
            // As they lie in a new program's memory: each followed by a zero. Without any, Linux makes one that is empty.
            *args = list.iter().flat_map(|arg| arg.bytes().chain([0])).collect();
            raw.args_len = args.len().saturating_sub(1) as u32;
            if args.is_empty() {
                args.push(0);
            }
            raw.args = args.as_ptr() as u64;
        }
        Question::File { op, path, fileless, caller, .. } => {
            put(Some(path), caller);
            raw.kind = kind::FILE;
            raw.what = op.number();
            raw.flags = if *fileless { EXEC_FILELESS } else { 0 };
        }
        Question::System { operation, outside, caller, .. } => {
            put(None, caller);
            raw.kind = kind::SYSTEM;
            raw.what = operation.number();
            raw.outside = u32::from(*outside);
        }
        Question::Connect { address, port, protocol, .. }
        | Question::Listen { address, port, protocol, .. } => {
            let listens = matches!(question, Question::Listen { .. });
            raw.kind = if listens { kind::LISTEN } else { kind::CONNECT };
            // What the hooks do before they judge.
            let address = match address.to_canonical() {
                IpAddr::V4(address) if address.is_unspecified() && !listens => {
                    IpAddr::V4(Ipv4Addr::LOCALHOST)
                }
                IpAddr::V6(address) if address.is_unspecified() && !listens => {
                    IpAddr::V6(Ipv6Addr::LOCALHOST)
                }
                address => address,
            };
            match address {
                IpAddr::V4(address) => {
                    raw.what = 4;
                    raw.address[0] = address.into();
                }
                IpAddr::V6(address) => {
                    raw.what = 6;
                    let bits = u128::from(address);
                    raw.address = [96, 64, 32, 0].map(|shift| (bits >> shift) as u32);
                }
            }
            raw.port = u32::from(*port);
            raw.protocol = u32::from(*protocol);
        }
        Question::OpenSession { .. } | Question::Gateway { .. } => unreachable!("never asked here"),
    }
    raw
}
