//! Runs techniques, four ways each, and judges.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use sallyport_sensor::kernel::Mode;
use sallyport_sensor::shepherd::filter::Refusals;
use sallyport_sensor_abi::policy::operation;

use crate::enforcer::Enforcer;
use crate::report::{self, Row, Summary, Verdict};
use crate::server::{Ended, Server};
use crate::stage::{self, Stage};
use crate::technique::{Person, Technique};

pub(crate) struct Options {
    pub(crate) mode: Option<Mode>,
    pub(crate) bundle: PathBuf,
    pub(crate) own_machine: bool,
    pub(crate) without_sensor: bool,
    pub(crate) verbose: bool,
}

/// Said of what no session can do, whatever policy says.
const GIVEN_UP: &str = "every session gives up what this needs when it starts";

/// One run of one technique.
struct Ran {
    happened: bool,
    ended: Ended,
}

struct Runner<'a> {
    techniques: &'a [Technique],
    server: Server,
    verbose: bool,
}

/// Runs all, prints a row for each, and last how many there were.
pub(crate) fn run(techniques: &[Technique], options: &Options) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the battery needs root: it loads programs into the kernel, and tries what root can do");
    }
    // Tests of the kernel programs take it, too: they share the kernel.
    let lock = std::fs::File::create("/tmp/sallyport-kernel-tests.lock").context("make the lock file")?;
    let _alone = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("wait for the tests of the kernel programs")?;
    // Before anything else: what is forked from it must not have descriptors of the sensor's.
    let server = Server::start(techniques).context("start the server of techniques")?;
    let mut runner = Runner { techniques, server, verbose: options.verbose };
    let done = runner.all(options);
    drop(runner);
    stage::remove().context("remove the stage")?;
    done
}

impl Runner<'_> {
    fn all(&mut self, options: &Options) -> Result<()> {
        let mut obstacles: Vec<Option<String>> = Vec::new();
        for number in 0..self.techniques.len() {
            obstacles.push(self.obstacle(number, options));
        }
        if options.without_sensor {
            for (technique, obstacle) in self.techniques.iter().zip(obstacles) {
                let works = obstacle.unwrap_or_else(|| "works".to_owned());
                println!("{}: {}: {works}", technique.group, technique.name);
            }
            return Ok(());
        }
        let enforcer = Enforcer::start(&options.bundle, options.mode)?;
        let mode = enforcer.mode()?;
        for (number, obstacle) in obstacles.into_iter().enumerate() {
            let (verdict, note) = match obstacle {
                Some(obstacle) => (Verdict::Na, obstacle),
                None => self.judge(number, &enforcer),
            };
            report::row(&Row::new(&self.techniques[number], mode == Mode::Tracepoint, verdict, note));
        }
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
        report::end(&Summary { mode: mode.to_string(), release, rows: self.techniques.len() });
        Ok(())
    }

    /// Without the sensor: why it does not work here, if it does not.
    fn obstacle(&mut self, number: usize, options: &Options) -> Option<String> {
        if self.techniques[number].guest_only && !options.own_machine {
            return Some("it would change a machine that others use".to_owned());
        }
        match self.once(number, None) {
            Ok(ran) if ran.happened => None,
            Ok(ran) => Some(format!("without the sensor: {}", said(&ran.ended, "nothing happened"))),
            Err(error) => Some(format!("without the sensor: {error:#}")),
        }
    }

    fn judge(&mut self, number: usize, enforcer: &Enforcer) -> (Verdict, String) {
        let technique = self.techniques[number];
        let gives_up = |operation| enforcer.refusals(Person::Permitted).has(operation);
        let given_up = technique.always_traced
            && (enforcer.mode().is_ok_and(|mode| mode == Mode::Tracepoint) || gives_up(operation::IO_URING));
        let controls: &[(Option<Person>, &str)] = match technique.always || given_up {
            true => &[(None, "an untagged process")],
            false => &[(None, "an untagged process"), (Some(Person::Permitted), "a session that may")],
        };
        for (person, who) in controls {
            match self.once(number, person.map(|person| (enforcer, person))) {
                Ok(ran) if ran.happened => {}
                Ok(ran) => {
                    return (Verdict::Broken, format!("{who}: {}", said(&ran.ended, "nothing happened")));
                }
                Err(error) => return (Verdict::Broken, format!("{who}: {error:#}")),
            }
        }
        match self.once(number, Some((enforcer, technique.person))) {
            Ok(ran) if ran.happened => (Verdict::Lost, String::new()),
            Ok(ran) if ran.ended.killed => (Verdict::Killed, String::new()),
            Ok(_) if given_up => (Verdict::Blocked, GIVEN_UP.to_owned()),
            Ok(_) => (Verdict::Blocked, String::new()),
            Err(error) => (Verdict::Broken, format!("a session that may not: {error:#}")),
        }
    }

    fn once(&mut self, number: usize, session: Option<(&Enforcer, Person)>) -> Result<Ran> {
        let technique = &self.techniques[number];
        let mut stage = Stage::fresh().context("set the stage")?;
        (technique.prepare)(&stage).context("prepare")?;
        let ran = self.act(number, &mut stage, session);
        self.server.clean()?;
        let ran = ran?;
        if self.verbose {
            let who = session.map_or("nobody", |(_, person)| person.name());
            println!("{}: {}: {who}: {} {:?}", technique.group, technique.name, ran.happened, ran.ended);
        }
        Ok(ran)
    }

    fn act(&mut self, number: usize, stage: &mut Stage, session: Option<(&Enforcer, Person)>) -> Result<Ran> {
        let started = self.server.run(number)?;
        stage.victim = started.victim;
        let mut refusals = Refusals::default();
        if let Some((enforcer, person)) = session {
            refusals = enforcer.refusals(person);
            enforcer.register().context("register names")?;
            if self.techniques[number].guarded {
                enforcer.guard(started.victim, true).context("guard the victim")?;
            }
            enforcer.tag(started.process, person)?;
        }
        // What was done before is not to be judged.
        stage.remember();
        let ended = self.server.go(refusals)?;
        let happened = (self.techniques[number].happened)(stage);
        if let Some((enforcer, _)) = session {
            enforcer.guard(started.victim, false)?;
        }
        Ok(Ran { happened, ended })
    }
}

fn said(ended: &Ended, otherwise: &str) -> String {
    match ended.word.is_empty() {
        true => otherwise.to_owned(),
        false => ended.word.clone(),
    }
}
