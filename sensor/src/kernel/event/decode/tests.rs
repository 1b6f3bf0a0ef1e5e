//! Decoding of well-formed and of hostile bytes.

use super::*;

#[expect(unsafe_code, reason = "bytes out of plain integers")]
fn bytes<T: Copy>(value: &T) -> Vec<u8> {
    // SAFETY: the ABI's structures have no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }.to_vec()
}

fn header(kind: u32, decision: Word, cause: u32) -> abi::Header {
    let mut comm = [0; 16];
    comm[..4].copy_from_slice(b"bash");
    abi::Header { kind, cause, decision, tgid: 7, session: 3, generation: 9, comm, ..Default::default() }
}

#[test]
fn an_exec_with_path_and_arguments() {
    let body = abi::Exec {
        flags: abi::EXEC_FILELESS | abi::EXEC_ARGS_CUT,
        path_len: 7,
        args_len: 5,
        args_total: 900,
        ..Default::default()
    };
    let mut event = bytes(&header(kind::EXEC, DENY | KILL | 5, 0));
    event.extend(bytes(&body));
    event.extend(b"/bin/lsls\0-l");
    let Event::Exec { head, exec } = Event::try_from(event.as_slice()).expect("an event") else {
        panic!("another kind")
    };
    assert_eq!(head.judgement, Judgement::Denied { rule: 5, kill: true, end_session: false });
    assert_eq!((head.session, head.generation, head.process.comm.as_str()), (3, 9, "bash"));
    assert_eq!(exec.path, b"/bin/ls");
    assert_eq!(exec.arguments(), ["ls", "-l"]);
    assert!(exec.fileless && exec.args_cut() && !exec.path_cut && !exec.prevented);
}

#[test]
fn a_connection() {
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[10, 0, 0, 1]);
    let body = abi::Connect { address, port: 443, version: 4, protocol: 6, op: abi::OP_CONNECT };
    let mut event = bytes(&header(kind::CONNECT, OBSERVED | 2, 0));
    event.extend(bytes(&body));
    let Event::Connect { head, connect } = Event::try_from(event.as_slice()).expect("an event") else {
        panic!("another kind")
    };
    assert_eq!(head.judgement, Judgement::Observed { rule: 2 });
    assert_eq!(connect.destination, Destination::Connection(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 443));
}

#[test]
fn every_cut_is_an_error_and_nothing_panics() {
    let body = abi::Exec { path_len: 4, args_len: u32::MAX, ..Default::default() };
    let mut event = bytes(&header(kind::EXEC, 0, 0));
    event.extend(bytes(&body));
    event.extend(b"/bin");
    for len in 0..=event.len() {
        assert!(matches!(Event::try_from(&event[..len]), Err(DecodeError::Short(_))), "{len}");
    }
}

#[test]
fn unknown_numbers_are_errors() {
    let error = |header: abi::Header| Event::try_from(bytes(&header).as_slice()).unwrap_err();
    assert_eq!(error(header(99, 0, 0)), DecodeError::Unknown { what: "kind", value: 99 });
    assert_eq!(
        error(header(kind::EXIT, UNJUDGED | DENY, 77)),
        DecodeError::Unknown { what: "cause", value: 77 }
    );
}
