//! Tests with real files, processes and cgroups.

use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Command};

use super::*;

fn running(path: &std::path::Path) -> Child {
    Command::new(path).arg("30").current_dir("/usr/share").spawn().expect("it runs")
}

fn id_of(path: &std::path::Path) -> FileId {
    let file = std::fs::File::open(path).expect("a file");
    let device = mounts::device_of(&file, std::process::id()).expect("its mount");
    (device, file.metadata().expect("metadata").ino())
}

fn question(id: u64, tgid: u32, file: FileId, path: &std::path::Path) -> Question {
    Question {
        id,
        tgid,
        started: 1,
        time_ns: crate::clock::wall_ns(),
        executable: Some((file, path.to_owned())),
        ..Question::default()
    }
}

async fn hash_of(enricher: &mut Enricher, question: Question) -> Option<String> {
    let id = question.id;
    let (mut now, late) = enricher.ask(vec![question]).await;
    let mut answer = now.remove(&id).or_else(|| late.into_iter().find(|answer| answer.id == id));
    while answer.as_ref().is_none_or(|answer| answer.hash_follows) {
        answer = Some(enricher.next().await).filter(|answer| answer.id == id);
    }
    answer.and_then(|answer| answer.sha256)
}

#[tokio::test]
async fn what_was_executed_is_hashed_and_nothing_else() {
    let dir = tempfile::tempdir().expect("dir");
    let program = dir.path().join("program");
    std::fs::copy("/usr/bin/sleep", &program).expect("a copy");
    let expected =
        hex::encode(<sha2::Sha256 as sha2::Digest>::digest(std::fs::read("/usr/bin/sleep").expect("sleep")));
    let id = id_of(&program);
    let mut child = running(&program);
    let mut enricher = Enricher::start(None);
    assert_eq!(hash_of(&mut enricher, question(1, child.id(), id, &program)).await, Some(expected.clone()));

    // Its name is another file's now: the process still tells what it executes.
    std::fs::remove_file(&program).expect("removed");
    std::fs::write(&program, "#!/bin/sh\n").expect("another file");
    assert_eq!(hash_of(&mut enricher, question(2, child.id(), id, &program)).await, Some(expected));
    child.kill().expect("killed");
    child.wait().expect("ended");

    // The process is gone and its name is another's: nothing is better than something wrong.
    let gone = Question {
        executable: Some(((id.0, id.1 ^ 0xffff), program.clone())),
        ..question(3, child.id(), id, &program)
    };
    assert_eq!(hash_of(&mut enricher, gone).await, None);

    // Reached by path only, and changed since.
    let other = id_of(&program);
    let before = Question { time_ns: 1_000, ..question(4, child.id(), other, &program) };
    assert_eq!(hash_of(&mut enricher, before).await, None);
    let control = question(5, child.id(), other, &program);
    assert!(hash_of(&mut enricher, control).await.is_some(), "control: unchanged, so by its path");
}

#[tokio::test]
async fn a_changed_file_has_another_hash() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("x");
    std::fs::write(&path, "one").expect("written");
    let mut enricher = Enricher::start(None);
    let first = hash_of(&mut enricher, question(1, 1, id_of(&path), &path)).await.expect("a hash");
    std::fs::write(&path, "two").expect("written in place: the same inode and size");
    let second = hash_of(&mut enricher, question(2, 1, id_of(&path), &path)).await.expect("a hash");
    assert_ne!(first, second);
}

#[tokio::test]
async fn folders_and_cgroups_are_those_of_the_process() {
    let Some(root) = crate::kernel::probe().cgroup2 else {
        eprintln!("skipped: no cgroup2 hierarchy is mounted");
        return;
    };
    let mut child = running("/usr/bin/sleep".as_ref());
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", child.id())).expect("its cgroups");
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).expect("cgroup2").to_owned();
    let cgroup = std::fs::metadata(root.join(path.trim_start_matches('/'))).expect("its folder").ino();
    let folder = id_of("/usr/share".as_ref());
    let mut enricher = Enricher::start(Some(root));
    let ask = |id, folder, tgid| Question { id, tgid, folder: Some(folder), cgroup, ..Question::default() };
    let (mut now, _) =
        enricher.ask(vec![ask(1, folder, child.id()), ask(2, (folder.0, 1), child.id())]).await;
    let answer = now.remove(&1).expect("an answer");
    assert_eq!(answer.folder.expect("a folder").path, "/usr/share");
    assert_eq!(answer.cgroup.clone().expect("a cgroup").path, path);
    assert_eq!(now.remove(&2).expect("an answer").folder, None, "that is another folder");
    child.kill().expect("killed");
    child.wait().expect("ended");
    // Without the process: by the walk, or from memory.
    let (mut now, _) = enricher.ask(vec![ask(3, folder, child.id())]).await;
    assert_eq!(now.remove(&3).expect("an answer").cgroup, answer.cgroup);
}

#[test]
fn containers_are_told_by_their_cgroups() {
    let id = "0123456789abcdef".repeat(4);
    for path in [
        format!("/docker/{id}"),
        format!("/system.slice/docker-{id}.scope"),
        format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope/init"),
        format!("/kubepods/burstable/pod1/{id}"),
        format!("/user.slice/user-1000.slice/user@1000.service/libpod-{id}.scope"),
    ] {
        assert_eq!(container_of(&path), Some(id.as_str()), "{path}");
    }
    assert_eq!(container_of("/machine.slice/machine-web.scope/payload"), Some("web"));
    assert_eq!(container_of("/user.slice/user-1000.slice/session-3.scope"), None);
}
