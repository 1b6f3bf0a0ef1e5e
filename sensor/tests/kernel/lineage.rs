//! Tags: every descendant has one, whatever it does; nobody else does; they go with the process.

use aya::maps::{Array, HashMap, MapData};
use sallyport_sensor::kernel::{Cause, Event, Judgement, KernelError};
use sallyport_sensor_abi::policy::DENY;
use sallyport_sensor_abi::session::{Ended, Tag};

use crate::helper::shell_function;
use crate::host::{Host, Waiting, eventually};
use crate::tables::Tables;

fn no_touch() -> Tables {
    Tables::allow_all().path("/usr/bin/touch", DENY | 1)
}

#[tokio::test]
async fn double_fork_and_new_session_keep_the_tag() {
    let host = Host::start();
    host.session(1, &no_touch());
    let script = "(setsid bash -c '(bash -c \"touch orphan; mkdir orphan-ran\" &)' &) ; for i in {1..100}; do [ -d orphan-ran ] && break; sleep 0.05; done; true";
    assert!(host.run(Some(1), script).ok());
    eventually("the orphan ran", || host.file("orphan-ran").exists());
    assert!(!host.file("orphan").exists(), "an orphan in a new session shed the tag");
    assert!(host.run(None, script).ok());
    eventually("untagged orphan", || host.file("orphan").exists());
}

#[tokio::test]
async fn threads_do_not_end_the_tag_and_exec_from_one_is_judged() {
    let host = Host::start();
    host.session(1, &no_touch());
    let script = format!(
        "{}helper threads /usr/bin/touch one; helper thread-exec /usr/bin/touch two; helper thread-exec /usr/bin/mkdir dir; true",
        shell_function()
    );
    let ran = host.run(Some(1), &script);
    assert!(ran.ok(), "{ran:?}");
    assert!(!host.file("one").exists(), "the tag went with a thread");
    assert!(!host.file("two").exists(), "an exec from a second thread was not judged");
    assert!(host.file("dir").exists(), "{ran:?}");
    assert!(host.run(None, &script).ok());
    assert!(host.file("one").exists() && host.file("two").exists());
}

#[tokio::test]
async fn tags_and_counts_are_gone_when_all_have_ended() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all());
    assert!(
        host.run(Some(1), "for i in {1..20}; do (sleep 0.02 | cat) & done; wait; exit 3").status.code()
            == Some(3)
    );
    host.all_gone();
    let events = host.drain().await;
    let count = |which: fn(&Event) -> bool| events.iter().filter(|event| which(event)).count();
    let forks = count(|event| matches!(event, Event::Fork { .. }));
    assert!(forks >= 60, "{forks}");
    assert_eq!(count(|event| matches!(event, Event::Exit { .. })), forks + 1, "one end for each beginning");
    assert!(
        events.iter().any(|event| matches!(event, Event::Exit { code: 0x300, .. })),
        "exit status 3 of the leader"
    );
}

#[tokio::test]
async fn a_process_that_ended_cannot_be_tagged() {
    let host = Host::start();
    host.session(1, &Tables::allow_all());
    let mut waiting = Waiting::start("exit 0", host.folder.path());
    let pid = waiting.pid();
    waiting.release();
    eventually("a zombie", || {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    });
    assert!(matches!(host.kernel.tag(pid, 1, 1), Err(KernelError::NoProcess(_))));
    assert!(host.kernel.tasks().expect("tasks").is_empty());
    assert_eq!((host.kernel.host_task_count(), host.kernel.sessions()[0].tasks), (0, 0));
    waiting.wait();
}

#[tokio::test]
async fn a_process_has_one_tag() {
    let host = Host::start();
    host.session(1, &Tables::allow_all());
    host.session(2, &Tables::allow_all());
    let waiting = Waiting::start("true", host.folder.path());
    host.kernel.tag(waiting.pid(), 1, 7).expect("tag");
    assert!(matches!(host.kernel.tag(waiting.pid(), 2, 7), Err(KernelError::Tagged(_))));
    assert_eq!(host.kernel.host_task_count(), 1);
    let task = host.kernel.tasks().expect("tasks")[0];
    assert_eq!((task.tgid, task.session, task.channel), (waiting.pid(), 1, 7));
    host.kernel.untag(waiting.pid()).expect("untag");
    assert_eq!(host.kernel.host_task_count(), 0);
    assert!(waiting.go().ok());
    assert!(matches!(host.kernel.tag(1, 99, 1), Err(KernelError::NoSession(99))));
}

/// The bomb: each shell starts two more and waits. `hits` is what is left of it.
const BOMB: &str =
    "b() { for i in {1..40}; do (sleep 3; mkdir survivor$i) & done; wait; mkdir finished; }; b";

#[tokio::test]
async fn a_session_with_too_many_processes_is_stopped() {
    let mut host = Host::start();
    let (header, arena) = Tables::allow_all().compile();
    let policy = host.kernel.load_policy(&header, &arena).expect("policy");
    host.kernel.open_session(1, policy.slot, 20).expect("session");
    let ran = host.run(Some(1), BOMB);
    assert!(ran.killed(), "the process that forked too much goes on: {ran:?}");
    let refused = host.drain().await.into_iter().any(|event| {
        matches!(event, Event::Fork { head, .. } if head.judgement == Judgement::Unjudged(Cause::TooManyTasks))
    });
    assert!(refused, "the event says why");
    assert!(host.kernel.sessions()[0].tasks <= 21);
    assert!(
        host.run(None, "for i in {1..40}; do sleep 0.2 & done; wait").ok(),
        "others may have as many as they like"
    );
    host.all_gone();
}

#[tokio::test]
async fn the_host_has_a_limit_too() {
    let host = Host::start();
    host.session(1, &Tables::allow_all());
    host.kernel.set_host_task_limit(20);
    assert!(host.run(Some(1), BOMB).killed());
    assert!(!host.file("finished").exists());
    host.all_gone();
}

/// Forks so often, one process after another.
fn forks(times: u32, wait: &str, made: &str) -> String {
    format!("perl -e 'for (1..{times}) {{ my $p = fork; exit 0 unless $p; {wait} }} mkdir \"{made}\"'")
}

#[tokio::test]
async fn processes_that_were_waited_for_do_not_count_however_fast_they_come() {
    let host = Host::start();
    let (header, arena) = Tables::allow_all().compile();
    let policy = host.kernel.load_policy(&header, &arena).expect("policy");
    host.kernel.open_session(1, policy.slot, 20).expect("session");
    assert!(host.run(Some(1), &forks(5_000, "waitpid $p, 0;", "waited")).ok());
    assert!(host.file("waited").exists());
    host.all_gone();
}

#[tokio::test]
async fn processes_that_nobody_waits_for_have_a_limit() {
    let host = Host::start();
    let (header, arena) = Tables::allow_all().compile();
    let policy = host.kernel.load_policy(&header, &arena).expect("policy");
    host.kernel.open_session(1, policy.slot, 1000).expect("session");
    assert!(host.run(Some(1), &forks(500, "", "permitted")).ok());
    assert!(host.file("permitted").exists(), "control: this is far from the usual limit");
    host.all_gone();
    host.kernel.set_session_ended_limit(1, 50).expect("limit");
    host.run(Some(1), &format!("{}; true", forks(500, "", "hoarded")));
    assert!(!host.file("hoarded").exists(), "500 process numbers were taken although 50 are the limit");
    host.all_gone();
    assert!(host.run(None, &forks(500, "", "hoarded")).ok() && host.file("hoarded").exists());
}

/// Tags of session 1, in slot 0, at all free ones of the 500 process numbers after `last`, counted: as if nobody had seen how
/// their processes ended.
struct LeftBehind {
    tasks: HashMap<MapData, u32, Tag>,
    numbers: Vec<u32>,
}

impl LeftBehind {
    fn new(host: &Host, last: u32) -> Self {
        let mut tasks = HashMap::try_from(host.map("TASKS")).expect("a hash map");
        let tag = Tag { session: 1, started: 1, ..Tag::default() };
        let mut numbers: Vec<u32> = (last + 1..last + 501).collect();
        numbers.retain(|number| !std::path::Path::new(&format!("/proc/{number}")).exists());
        for number in &numbers {
            tasks.insert(number, tag, 0).expect("insert");
        }
        count(host, numbers.len() as u32);
        Self { tasks, numbers }
    }

    /// Takes away those that are still there; how many are not.
    fn remove(mut self, host: &Host) -> usize {
        let mut left = 0;
        for number in &self.numbers {
            if self.tasks.get(number, 0).is_ok_and(|tag| tag.started == 1) {
                self.tasks.remove(number).expect("remove");
                left += 1;
            }
        }
        count(host, (left as u32).wrapping_neg());
        self.numbers.len() - left
    }
}

/// Adds to what is counted, of the host and of slot 0.
fn count(host: &Host, more: u32) {
    let mut of_host = Array::<MapData, [u32; 8]>::try_from(host.map("HOST")).expect("HOST");
    let mut value = of_host.get(&0, 0).expect("read");
    value[0] = value[0].wrapping_add(more);
    of_host.set(0, value, 0).expect("write");
    let mut sessions = Array::<MapData, [u32; 12]>::try_from(host.map("SESSIONS")).expect("SESSIONS");
    let mut value = sessions.get(&0, 0).expect("read");
    value[4] = value[4].wrapping_add(more);
    sessions.set(0, value, 0).expect("write");
}

#[tokio::test]
async fn a_tag_that_was_left_behind_is_nobody_elses() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all());
    host.session(2, &Tables::allow_all().path("/usr/bin/touch", DENY | 2));
    let waiting = Waiting::start("/usr/bin/touch made; true", host.folder.path());
    host.kernel.tag(waiting.pid(), 2, 1).expect("tag");
    let last = std::fs::read_to_string("/proc/sys/kernel/ns_last_pid").expect("the last process number");
    let left = LeftBehind::new(&host, last.trim().parse().expect("a number"));
    assert_eq!(host.kernel.sessions()[0].tasks as usize, left.numbers.len());
    waiting.go();
    assert!(!host.file("made").exists(), "the child was judged under another session's policy");
    let events = host.drain().await;
    assert!(events.iter().all(|event| event.head().session == 2), "{events:?}");
    assert_eq!(left.remove(&host), 1, "the child got a number with a tag");
    // Each was counted once.
    host.all_gone();
    assert!(host.run(Some(1), "/usr/bin/touch made").ok() && host.file("made").exists(), "control");
}

#[tokio::test]
async fn ended_processes_that_nobody_saw_go_are_swept_and_others_are_not() {
    let host = Host::start();
    host.session(1, &Tables::allow_all());
    let counted = || host.kernel.sessions()[0].ended;
    let mut waiting = Waiting::start("exit 0", host.folder.path());
    let pid = waiting.pid();
    host.kernel.tag(pid, 1, 1).expect("tag");
    waiting.release();
    eventually("a zombie", || {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    });
    // Where no hook finds it, as if the kernel ran no program when it freed the process.
    let mut ended = HashMap::<MapData, u64, Ended>::try_from(host.map("ENDED")).expect("a hash map");
    let (leader, process) = ended.iter().next().expect("an entry").expect("read");
    assert_eq!((process.session, process.tgid), (1, pid));
    ended.insert(leader ^ 1, process, 0).expect("insert");
    ended.remove(&leader).expect("remove");
    host.kernel.sweep_ended().expect("sweep");
    assert_eq!(counted(), 1, "nobody has waited for it: it takes a process number");
    waiting.wait();
    assert_eq!(counted(), 1, "control: no hook counts it down");
    host.kernel.sweep_ended().expect("sweep");
    assert_eq!(counted(), 0);
    assert!(ended.iter().next().is_none());
}

#[tokio::test]
async fn a_sweep_ends_while_processes_come_and_go() {
    let host = Host::start();
    host.session(1, &Tables::allow_all());
    let waiting = Waiting::start(&forks(5_000, "waitpid $p, 0;", "waited"), host.folder.path());
    host.kernel.tag(waiting.pid(), 1, 1).expect("tag");
    let sweeps = std::thread::scope(|scope| {
        let storm = scope.spawn(|| waiting.go());
        let mut sweeps = 0;
        while !storm.is_finished() {
            host.kernel.sweep_ended().expect("sweep");
            sweeps += 1;
        }
        assert!(storm.join().expect("the storm").ok());
        sweeps
    });
    assert!(sweeps > 10, "{sweeps} sweeps beside the storm");
    assert!(host.file("waited").exists());
    host.all_gone();
}
