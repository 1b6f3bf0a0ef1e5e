//! The figures: when how many sensors had reported, beside the target.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::gateway::Told;
use crate::sensor::Way;

/// From the push to the last report, at most, in milliseconds.
const TARGET: u64 = 2_000;

/// One push. Times in milliseconds since its request was sent.
#[derive(Debug, Serialize)]
pub(crate) struct Push {
    way: &'static str,
    bytes: usize,
    /// The gateway had checked it and put it on the record.
    recorded: u64,
    half: u64,
    nearly_all: u64,
    all: u64,
    /// The gateway answered.
    answered: u64,
    /// Sensors that its answer says enforce the version.
    in_answer: usize,
    /// Milliseconds of processors: the gateway's, and this process's.
    processor: (u64, u64),
}

impl Push {
    /// From the times that the gateway recorded.
    pub(crate) fn new(
        way: Way,
        bytes: usize,
        begun: u64,
        answered: u64,
        in_answer: usize,
        told: &Told,
        (theirs, ours): (Duration, Duration),
    ) -> Self {
        let since = |time: u64| time.saturating_sub(begun) / 1_000_000;
        let n = told.reports.len();
        // The report with which so many of a hundred are there.
        let share = |percent: usize| {
            told.reports.get((n * percent).div_ceil(100).max(1) - 1).map_or(0, |at| since(*at))
        };
        let processor = (to_ms(theirs), to_ms(ours));
        Self {
            way: way.name(),
            bytes,
            recorded: since(told.changed),
            half: share(50),
            nearly_all: share(99),
            all: share(100),
            answered: since(answered),
            in_answer,
            processor,
        }
    }
}

impl fmt::Display for Push {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: on the record {} ms, 50 % {} ms, 99 % {} ms, all {} ms, answered {} ms ({} in force); gateway {} ms of processors, sensors {} ms",
            self.way,
            self.recorded,
            self.half,
            self.nearly_all,
            self.all,
            self.answered,
            self.in_answer,
            self.processor.0,
            self.processor.1
        )
    }
}

/// All pushes.
pub(crate) struct Figures {
    sensors: usize,
    rules: usize,
    hosts: usize,
    /// Every push.
    pub(crate) pushes: Vec<Push>,
    /// The gateway's memory without sensors and with all of them, MiB.
    pub(crate) memory: (u64, u64),
    /// The most it had, MiB.
    pub(crate) peak: u64,
}

impl Figures {
    /// None yet.
    pub(crate) fn new(sensors: usize, (rules, hosts): (usize, usize)) -> Self {
        Self { sensors, rules, hosts, pushes: vec![], memory: (0, 0), peak: 0 }
    }

    /// Whether the slowest push was fast enough, where one parses for all.
    pub(crate) fn met(&self) -> bool {
        self.slowest(Way::Shared) <= TARGET
    }

    fn of(&self, way: Way) -> impl Iterator<Item = &Push> {
        self.pushes.iter().filter(move |push| push.way == way.name())
    }

    fn slowest(&self, way: Way) -> u64 {
        self.of(way).map(|push| push.all).max().unwrap_or(u64::MAX)
    }

    /// For docs/performance.md.
    pub(crate) fn markdown(&self) -> String {
        let bytes = self.pushes.iter().map(|push| push.bytes).max().unwrap_or(0);
        let (shared, own) = (self.of(Way::Shared).count(), self.of(Way::Own).count());
        let mut text = format!(
            "One gateway, {} simulated sensors with mTLS streams of their own over the loopback interface, all on one \
             computer. A bundle of {} rules and {} hosts, {} KiB, is pushed with one rule changed. Each sensor verifies \
             signature, number and hash of each order itself, with the sensor's own code, reports on its control stream \
             and delivers the record of it as evidence. One session runs on each. Nothing is loaded into a kernel or \
             kept on the sensors' disks.\n\n\
             Milliseconds from the request until the gateway has the reports, by its own records: median of {shared} \
             pushes, and of {own} in the second row (least to most).\n\n\
             | who parses, checks and compiles | checked and on the record | 50 % report | 99 % | all | gateway, processor time | sensors together |\n\
             |---|---|---|---|---|---|---|\n",
            self.sensors,
            self.rules,
            self.hosts,
            bytes / 1024
        );
        for (way, name) in
            [(Way::Shared, "one for all sensors"), (Way::Own, "each sensor, all on this computer")]
        {
            let columns: [fn(&Push) -> u64; 6] = [
                |push| push.recorded,
                |push| push.half,
                |push| push.nearly_all,
                |push| push.all,
                |push| push.processor.0,
                |push| push.processor.1,
            ];
            let cells: Vec<String> = columns.iter().map(|column| spread(self.of(way).map(column))).collect();
            text += &format!("| {name} | {} |\n", cells.join(" | "));
        }
        let slowest = self.slowest(Way::Shared);
        text += &format!(
            "\nThe second row is not what a fleet sees, where every host parses on processors of its own: it is the work of \
             {} hosts on this one computer, which the gateway runs on as well.\n\n\
             | target | at most | slowest push | |\n|---|---|---|---|\n\
             | all sensors report the new version, one parses for all | {TARGET} ms | {slowest} ms | {} |\n\
             | the same, all parse on this computer | – | {} ms | – |\n\n\
             Memory of the gateway: {} MiB alone, {} MiB with all sensors connected, {} MiB at most.\n",
            self.sensors,
            if self.met() { "met" } else { "**missed**" },
            self.slowest(Way::Own),
            self.memory.0,
            self.memory.1,
            self.peak,
        );
        text
    }
}

fn spread(values: impl Iterator<Item = u64>) -> String {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    match (values.first(), values.last()) {
        (Some(least), Some(most)) => format!("{} ({least} to {most})", values[values.len() / 2]),
        _ => "–".to_owned(),
    }
}

fn to_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
