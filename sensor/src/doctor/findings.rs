//! What `doctor` has to say: each finding says what it is, why it matters and what to do.
//!
//! Pure: made from what was looked at, so that every one of them can be tested.

use serde::Serialize;

use crate::config::Config;
use crate::kernel::{KernelFacts, Mode, PinnedState};
use crate::status::Status;
use crate::unbrokered::Wanted;

/// From this part of its limit on something counts as nearly full.
const NEARLY: f64 = 0.9;
/// Without a sign of life for so long, a sensor that is in charge is stuck: it gives one every second.
const STUCK_NS: u64 = 15_000_000_000;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Good to know.
    Note,
    /// Something is not judged, or was lost.
    Warning,
    /// Sessions cannot be held under policy, or are denied what they should be permitted.
    Error,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name, for programs.
    pub id: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// What to do.
    pub todo: String,
}

fn finding(
    id: &'static str,
    level: Level,
    what: impl Into<String>,
    why: impl Into<String>,
    todo: impl Into<String>,
) -> Finding {
    Finding { id, level, what: what.into(), why: why.into(), todo: todo.into() }
}

/// Everything, worst first.
#[must_use]
pub(super) fn all(
    config: &Config,
    kernel: &KernelFacts,
    chosen: Option<Mode>,
    pinned: Option<&PinnedState>,
    status: Option<&Status>,
) -> Vec<Finding> {
    let mut found = Vec::new();
    of_kernel(&mut found, config, kernel, chosen);
    match pinned {
        Some(pinned) => of_pinned(&mut found, config, pinned, kernel),
        None if kernel.root => found.push(finding(
            "not-loaded",
            Level::Note,
            "no kernel programs are loaded",
            "nothing is enforced on this host now",
            "start the sensor: `systemctl start sallyport-sensor`, or `sallyport-sensor run`",
        )),
        None => {}
    }
    of_logins(&mut found, config, kernel, pinned, status);
    if let Some(status) = status {
        of_policy(&mut found, status);
        unjudged(&mut found, status);
    }
    found.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    found
}

fn of_kernel(found: &mut Vec<Finding>, config: &Config, kernel: &KernelFacts, chosen: Option<Mode>) {
    if !kernel.root {
        found.push(finding(
            "not-root",
            Level::Warning,
            "doctor does not run as root",
            "only root can try what the kernel takes and look at what is loaded, so most of this is missing here",
            "run it again as root",
        ));
    }
    if !kernel.has_object {
        found.push(finding(
            "no-programs",
            Level::Error,
            "this sensor was built without its kernel programs",
            "it cannot enforce anything",
            "run `cargo xtask build`, or install a release",
        ));
    }
    if !kernel.btf {
        found.push(finding(
            "no-btf",
            Level::Error,
            format!("Linux {} does not describe its own structures: there is no usable /sys/kernel/btf/vmlinux", kernel.release),
            "the kernel programs read the kernel's structures by that description; without it nothing can be loaded, in no mode",
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (Debian's and Ubuntu's are, from 5.10 on); if it is, see whether /sys is mounted and /sys/kernel/btf/vmlinux is not hidden by another mount",
        ));
    }
    if kernel.btf && kernel.root && kernel.has_object && !kernel.lsm.works {
        found.push(no_lsm(config, kernel, chosen));
    }
    if chosen == Some(Mode::Lsm) && !kernel.not_judged.is_empty() {
        found.push(finding(
            "hooks-missing",
            Level::Warning,
            format!("Linux {} lacks some hooks", kernel.release),
            format!("in sessions this is not judged here: {}", kernel.not_judged.join("; ")),
            "boot a newer kernel (6.12 has them all), or accept it",
        ));
    }
    if chosen == Some(Mode::Tracepoint) && !kernel.seccomp {
        found.push(finding(
            "no-seccomp",
            Level::Warning,
            "the kernel does not take seccomp filters",
            "in tracepoint mode, mounts, tracing, modules and the like are refused by a filter on the session's first process; without it they are not judged at all",
            "boot a kernel built with CONFIG_SECCOMP_FILTER=y, or one with BPF LSM",
        ));
    }
    if kernel.cgroup2.is_none() {
        found.push(finding(
            "no-cgroup2",
            Level::Note,
            "no cgroup2 hierarchy is mounted",
            "connections are judged by programs on its root; the sensor mounts one for itself for a moment when it starts",
            "nothing, if the sensor starts",
        ));
    }
}

/// Which of the reasons for tracepoint mode it is.
fn no_lsm(config: &Config, kernel: &KernelFacts, chosen: Option<Mode>) -> Finding {
    let level = if config.mode == Some(Mode::Lsm) { Level::Error } else { Level::Warning };
    let why = if chosen.is_none() {
        "`mode = \"lsm\"` is set, so the sensor does not start"
    } else {
        "calls cannot be refused before they happen: programs are killed before their first instruction instead, and files, Unix sockets and requests to the kernel are judged less completely (see the limits of tracepoint mode)"
    };
    let list = kernel.lsms.join(",");
    if !kernel.lsm_built {
        let todo = "boot a kernel built with CONFIG_BPF_LSM=y (Debian's and Ubuntu's are, from 5.10 on); no boot parameter helps";
        return finding("bpf-lsm-not-built", level, "this kernel is built without BPF LSM", why, todo);
    }
    if kernel.lsms.is_empty() {
        let todo = "mount securityfs on /sys/kernel/security and run doctor again";
        return finding("lsm-list-unknown", level, "the list of security modules cannot be read", why, todo);
    }
    if kernel.lsms.iter().any(|lsm| lsm == "bpf") {
        let what =
            format!("BPF LSM is on, but does not take the programs: {}", kernel.lsm.obstacles.join("; "));
        return finding(
            "bpf-lsm-refused",
            level,
            what,
            why,
            "report it with the output of `sallyport-sensor doctor --json`",
        );
    }
    let what =
        format!("BPF LSM is built in but off: `bpf` is not among the active security modules ({list})");
    let todo = format!(
        "add `lsm={list},bpf` to the kernel's boot parameters and reboot; with GRUB: append it to GRUB_CMDLINE_LINUX in /etc/default/grub, then `update-grub`"
    );
    finding("bpf-lsm-off", level, what, why, todo)
}

fn of_pinned(found: &mut Vec<Finding>, config: &Config, pinned: &PinnedState, kernel: &KernelFacts) {
    let folder = config.pin_dir.display();
    if !pinned.abi_fits {
        let what = format!("`{folder}` holds maps of another version ({})", pinned.abi);
        let why = "this sensor cannot take them over; it replaces them if no session runs, and refuses to start otherwise";
        let todo = "end the running sessions and start this sensor, or run `sallyport-sensor uninstall`";
        found.push(finding("other-abi", Level::Warning, what, why, todo));
        return;
    }
    if !pinned.detached.is_empty() {
        found.push(finding(
            "detached",
            Level::Error,
            format!("kernel programs are missing from their hooks: {}", pinned.detached.join(", ")),
            "what they judge is not judged now, in running sessions either",
            "restart the sensor, which attaches all of them again; find out who removed the pins",
        ));
    } else if !pinned.same_programs {
        found.push(finding(
            "other-programs",
            Level::Note,
            "the attached kernel programs are those of another build of the sensor",
            "they enforce; the next start of this sensor replaces them without a gap",
            "restart the sensor, if it was upgraded",
        ));
    }
    if !pinned.missed.is_empty() {
        let all: Vec<String> =
            pinned.missed.iter().map(|(name, missed)| format!("{name} ({missed} times)")).collect();
        found.push(finding(
            "programs-skipped",
            Level::Error,
            format!("the kernel left out kernel programs since they were loaded: {}", all.join(", ")),
            "it does so when a program is started while it runs on the same processor already; what it would have judged then was not judged, and is not on the record",
            "report it with the output of `sallyport-sensor doctor --json`; until then, use a kernel without full preemption (`preempt=voluntary` among the boot parameters)",
        ));
    }
    if kernel.root && !pinned.in_charge {
        found.push(finding(
            "no-sensor",
            Level::Warning,
            "no sensor is running",
            "the kernel programs go on enforcing, but no session can be started, and events are lost when the ring is full",
            "start the sensor: `systemctl start sallyport-sensor`",
        ));
    }
    silence(found, pinned);
    for damage in &pinned.damaged {
        found.push(finding(
            "damaged-policy",
            Level::Error,
            format!("a policy in the kernel is half-written or damaged: {damage}"),
            "sessions judged by it are denied everything (log-ins that are only recorded go on)",
            "restart the sensor, which compiles the policies of its sessions again; if it comes back, report it",
        ));
    }
    for fill in &pinned.fill {
        let part = fill.used as f64 / fill.limit.max(1) as f64;
        if part >= NEARLY {
            let full = fill.used >= fill.limit;
            let level = if full { Level::Error } else { Level::Warning };
            let how = if full { "full" } else { "nearly full" };
            let (why, todo) = fullness(fill.what);
            let what = format!("{how}: {} of {} {}", fill.used, fill.limit, fill.what);
            found.push(finding("full", level, what, why, todo));
        }
    }
    for loss in pinned.events.iter().filter(|loss| loss.counters.lost > 0) {
        found.push(finding(
            "lost-events",
            Level::Warning,
            format!("{} of {} {} events were lost since the programs were loaded", loss.counters.lost, loss.counters.seen, loss.kind),
            "nothing was permitted by that, but the evidence has a gap; its size is in the records (kind `loss`)",
            "see whether the sensor was stopped or the host flooded at the time; `@record(\"none\")` on permits of ordinary file access keeps the ring free",
        ));
    }
    if pinned.sealed > 0 {
        found.push(finding(
            "sealed",
            Level::Note,
            format!("{} ended sessions still have processes", pinned.sealed),
            "they can start and connect nothing any more; processes stuck in the kernel cannot be killed",
            "nothing, if they go away",
        ));
    }
}

fn silence(found: &mut Vec<Finding>, pinned: &PinnedState) {
    let seconds = |ns: u64| ns / 1_000_000_000;
    match (pinned.silent_ns, pinned.grace_ns) {
        (Some(silent), Some(grace)) if silent > grace => found.push(finding(
            "sensor-gone",
            Level::Error,
            format!(
                "the sensor has given no sign of life for {} s; after {} s sessions can start nothing new",
                seconds(silent),
                seconds(grace)
            ),
            "programs, connections, listening and Unix sockets are refused in all sessions; what runs goes on, and so does everything outside of sessions",
            "start the sensor, or restart it if it hangs: it heals at its first sign of life",
        )),
        (Some(silent), _) if pinned.in_charge && silent > STUCK_NS => found.push(finding(
            "sensor-stuck",
            Level::Warning,
            format!("the sensor runs but has given no sign of life for {} s", seconds(silent)),
            "it may hang: no events are taken, and sessions will be able to start nothing new when the time is over",
            "look into its log (`journalctl -u sallyport-sensor`), restart it",
        )),
        (Some(_), None) => found.push(finding(
            "no-dead-man",
            Level::Note,
            "sessions go on for ever when the sensor is gone (`fail_closed_after = \"never\"`)",
            "whoever can stop the sensor acts unrecorded once the ring is full; verdicts hold all the same",
            "set `fail_closed_after`, unless it was meant so",
        )),
        _ => {}
    }
}

/// Why it matters that this is full, and what to do.
fn fullness(what: &str) -> (&'static str, &'static str) {
    match what {
        "processes" => (
            "a session's process that forks is killed",
            "find the session with so many processes (`sallyport sessions`); lower `sessions.max_processes`",
        ),
        "sessions" => ("one session more is refused before it starts", "end sessions; lower `sessions.max`"),
        "compiled policies" => (
            "for one more person, or local user, no session starts; a push that needs more places is refused and the old policy stays",
            "end sessions of different people; restart the sensor, which forgets policies that nobody uses",
        ),
        "words of compiled tables" => (
            "a policy that does not fit is refused, and the old one stays",
            "see the sizes in `sallyport policy check`; simplify patterns, end sessions of different people",
        ),
        "registered names" => (
            "files that further rules name are judged only by the path they are reached by, not by hard links and bind mounts of them",
            "name folders instead of single files in policies",
        ),
        "guarded processes" => (
            "further shepherds of sessions are not protected from signals of other sessions",
            "lower `sessions.max` and `sessions.max_channels`",
        ),
        _ => ("log-ins to further accounts are judged alike", "nothing, if that is right"),
    }
}

fn of_logins(
    found: &mut Vec<Finding>,
    config: &Config,
    kernel: &KernelFacts,
    pinned: Option<&PinnedState>,
    status: Option<&Status>,
) {
    if !kernel.audit {
        found.push(finding(
            "no-audit",
            if config.unbrokered == Wanted::Off { Level::Note } else { Level::Warning },
            "this kernel has no audit login uids (CONFIG_AUDIT is not set)",
            "log-ins that do not come through the gateway (console, direct ssh, cron as a person) cannot be seen; sessions of the gateway are not touched by this",
            "boot a kernel built with CONFIG_AUDIT=y, or close the other ways in",
        ));
    }
    let standing = status.map(|status| &status.unbrokered);
    for trouble in standing.iter().flat_map(|standing| &standing.troubles) {
        // The kernel's lack is told above.
        if kernel.audit {
            found.push(finding(
                "log-ins",
                Level::Warning,
                trouble.clone(),
                "log-ins outside of the gateway are never locked out by a fault, so policy does not hold for all of them now",
                "mend the policy and push it again",
            ));
        }
    }
    let enforced = standing.map_or_else(String::new, |standing| {
        format!(" ({} of {} accounts; {} log-ins now)", standing.enforced, standing.accounts, standing.logins)
    });
    let (what, why, todo) = match config.unbrokered {
        Wanted::Off => (
            "log-ins outside of the gateway are not looked at (`unbrokered = \"off\"`)".to_owned(),
            "whoever has another way in acts unseen by Sallyport",
            "set `unbrokered = \"record\"`, unless it was meant so",
        ),
        Wanted::Record => (
            format!("log-ins outside of the gateway are recorded, and nothing is denied to them{enforced}"),
            "their records say what policy would have denied",
            "set `unbrokered = \"enforce\"` when the policy for User::\"unbrokered\" is right",
        ),
        Wanted::Enforce => (
            format!(
                "policy is enforced on log-ins outside of the gateway{enforced}; only recorded: {}",
                config.break_glass.join(", ")
            ),
            "a policy without permits for User::\"unbrokered\" denies them everything",
            "know that you can get in as one of the accounts that are only recorded",
        ),
    };
    found.push(finding("unbrokered", Level::Note, what, why, todo));
    let running = pinned.is_some_and(|pinned| pinned.in_charge && pinned.abi_fits);
    if running && pinned.is_some_and(|pinned| pinned.unbrokered) == (config.unbrokered == Wanted::Off) {
        found.push(finding(
            "unbrokered-other",
            Level::Warning,
            "the running sensor treats log-ins outside of the gateway otherwise than this configuration says",
            "the configuration was changed after it was started, or it runs with another one",
            "restart the sensor",
        ));
    }
}

fn of_policy(found: &mut Vec<Finding>, status: &Status) {
    let Status { policy, policy_trouble, canary, .. } = status;
    if !policy_trouble.is_empty() {
        let stays = if policy.is_empty() {
            "no policy is".to_owned()
        } else {
            format!("policy {policy:.12} still is")
        };
        found.push(finding(
            "policy-refused",
            Level::Error,
            format!("the last order of policy was refused, and {stays} in force here: {policy_trouble}"),
            "this host does not enforce what the gateway wants it to; sessions that the gateway opens under the new policy may be refused here",
            "see `sallyport policy list`; correct what it says and push again, or roll back",
        ));
    }
    if !canary.is_empty() {
        found.push(finding(
            "canary",
            Level::Note,
            format!(
                "some sessions are judged by policy {canary:.12}, a canary, and the others by {policy:.12}"
            ),
            "the records name the version that judged",
            "nothing; `sallyport policy list` says when it ends",
        ));
    }
}

fn unjudged(found: &mut Vec<Finding>, status: &Status) {
    for (cause, count) in &status.unjudged {
        let (what, todo) = match cause.as_str() {
            "PathTooLong" => (
                "because their paths are too long or too deep (4096 bytes, 256 folders)",
                "find them in the records (reason: \"its path is too long to be judged\"); shorten the paths",
            ),
            "ArgsTooLong" => (
                "because their arguments are too long (32768 bytes) and a rule depends on them",
                "pass long lists by file or standard input, or word the rule without arguments",
            ),
            "ReadFailed" => ("because kernel memory could not be read", "report it: it should not happen"),
            "NoPolicy" => (
                "because their session or its policy was missing",
                "restart the sensor; see findings of damaged policies",
            ),
            "TooManyTasks" => (
                "because there were too many processes",
                "raise `sessions.max_processes`, if that many are right",
            ),
            "Busy" => ("because all work areas of the processor were taken", "report it if it grows"),
            "SensorGone" => ("because no sensor had been running for too long", "see why it was not running"),
            // What policy and the guards mean to deny.
            _ => continue,
        };
        found.push(finding(
            "unjudged",
            Level::Warning,
            format!("{count} actions could not be judged {what}, since the sensor was started"),
            "what cannot be judged is denied in sessions, and recorded with its cause; in log-ins that are only recorded it went on",
            todo,
        ));
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
