//! Processes and programs in records.

use sallyport_evidence::record::{Process, limits};

use super::{acts, cut};
use crate::enrich::Answer;
use crate::kernel::Exec;
use crate::lineage::Image;

pub(super) fn image(exec: &Exec, answer: Option<&Answer>) -> Image {
    let (args, args_cut_from) = match &exec.args {
        Some(args) => arguments(args, exec.args_total),
        None => (Vec::new(), None),
    };
    Image {
        path: String::from_utf8_lossy(&exec.path).into_owned(),
        path_cut: exec.path_cut,
        args,
        args_cut_from,
        inode: acts::file_id(exec.device, exec.inode),
        fileless: exec.fileless,
        setuid: exec.setuid,
        other_name: exec.other_name,
        sha256: answer.and_then(|answer| answer.sha256.clone()).unwrap_or_default(),
        folder: answer.and_then(|answer| answer.folder.clone()),
        mount_namespace: exec.mount_namespace,
        pid_namespace: exec.pid_namespace,
        audit_session: exec.audit_session,
    }
}

/// Tells of a process what it runs. In records of other kinds than exec, less of it.
pub(super) fn show(process: &mut Process, image: &Image, path_limit: usize, all_args: bool) {
    let (path, cut) = cut(image.path.clone(), path_limit);
    (process.path, process.path_cut) = (path, cut || image.path_cut);
    (process.args, process.args_cut_from) = if all_args {
        (image.args.clone(), image.args_cut_from)
    } else {
        brief(&image.args, image.args_cut_from)
    };
    process.inode.clone_from(&image.inode);
    process.fileless = image.fileless;
    process.setuid = image.setuid;
    process.other_name = image.other_name;
    process.sha256.clone_from(&image.sha256);
    if let Some(folder) = &image.folder {
        (process.cwd, process.cwd_cut) = (folder.path.clone(), folder.cut);
    }
    let known = |number: u32| (number != 0).then_some(number);
    process.mount_namespace = known(image.mount_namespace);
    process.pid_namespace = known(image.pid_namespace);
    process.audit_session = image.audit_session;
}

/// Zero-separated arguments one by one, as text, up to the limits of a record. `total`: how many bytes there were.
pub(crate) fn arguments(bytes: &[u8], total: u32) -> (Vec<String>, Option<u32>) {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let kept = &bytes[..bytes.len().min(limits::ARGS)];
    let all = kept.split(|byte| *byte == 0);
    let args: Vec<String> =
        all.take(limits::ARGS_COUNT).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
    let whole = kept.len() == bytes.len()
        && bytes.len() + 1 >= total as usize
        && kept.split(|byte| *byte == 0).count() <= limits::ARGS_COUNT;
    (args, (!whole).then_some(total))
}

/// The first arguments, for records that are not about the start of the program.
fn brief(args: &[String], cut_from: Option<u32>) -> (Vec<String>, Option<u32>) {
    let mut left = limits::ARGS_ELSEWHERE;
    let kept: Vec<String> = args
        .iter()
        .take_while(|arg| match left.checked_sub(arg.len() + 1) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        })
        .cloned()
        .collect();
    let bytes = || u32::try_from(args.iter().map(|arg| arg.len() + 1).sum::<usize>()).unwrap_or(u32::MAX);
    let cut_from = cut_from.or_else(|| (kept.len() < args.len()).then(bytes));
    (kept, cut_from)
}

/// `task_struct.exit_code` as `wait` shows it.
pub(super) fn status(code: u32) -> String {
    match code & 0x7f {
        0 => ((code >> 8) & 0xff).to_string(),
        number => acts::signal(number),
    }
}
