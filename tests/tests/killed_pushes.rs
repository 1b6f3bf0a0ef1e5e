//! Kill -9 of the gateway at random moments while policy is pushed, rolled back and tried as a canary, over and over, with
//! the real sensor connected. After each start: whole versions only, nothing acknowledged is missing, no serial number
//! goes back, the evidence verifies, and the sensor comes to what the gateway says is in force.
//!
//! The moments are drawn from a seed, which is printed; `SALLYPORT_SEED` repeats a run, `SALLYPORT_KILLS` makes it longer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sallyport_contract::v1::console_client::ConsoleClient;
use sallyport_contract::v1::{
    CurrentPolicyRequest, CurrentPolicyResponse, EndCanaryRequest, ListPoliciesRequest, ListPoliciesResponse,
    PushPolicyRequest, RollBackPolicyRequest, StartCanaryRequest,
};
use sallyport_e2e::child::Running;
use sallyport_e2e::command_line::Person;
use sallyport_e2e::stage::HOST;
use sallyport_e2e::{Stage, StageOptions, bundles, events, wait};
use sha2::{Digest as _, Sha256};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request};

/// Kills, unless the environment says another number.
const KILLS: u64 = 24;
/// Different bundles.
const VERSIONS: usize = 6;
/// The sensor's pauses between two connections grow while the gateway comes and goes: it is killed, too, every so many
/// kills of the gateway, and starts with the shortest one.
const SENSOR_EVERY: u64 = 3;
/// The latest moment of a kill after the first request of a round.
const LATEST: Duration = Duration::from_millis(900);

/// A change of policy: how, and to which version.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    how: &'static str,
    version: String,
}

/// What a round's client has seen.
#[derive(Debug, Default)]
struct Seen {
    /// Acknowledged, by serial number.
    acknowledged: BTreeMap<u64, Change>,
    /// Asked for and not answered.
    open: Option<Change>,
    /// What the round began with.
    stable: String,
    canary: Option<String>,
}

#[derive(Clone)]
struct Console {
    client: ConsoleClient<Channel>,
    token: String,
}

impl Console {
    fn ask<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token).parse()?);
        request.set_timeout(Duration::from_secs(30));
        Ok(request)
    }

    async fn connect(stage: &Stage, token: &str) -> Result<Self> {
        let ca = std::fs::read_to_string(stage.folder().join("gateway/ca.pem"))?;
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name("localhost");
        let at = format!("https://127.0.0.1:{}", stage.addresses.grpc.port());
        let channel = Endpoint::from_shared(at)?.tls_config(tls)?.connect().await?;
        let client = ConsoleClient::new(channel).max_decoding_message_size(64 << 20);
        Ok(Self { client, token: token.to_owned() })
    }

    async fn list(&mut self) -> Result<ListPoliciesResponse> {
        let request = self.ask(ListPoliciesRequest { limit: 0 })?;
        Ok(self.client.list_policies(request).await?.into_inner())
    }

    async fn show(&mut self, version: &str) -> Result<CurrentPolicyResponse> {
        let request = self.ask(CurrentPolicyRequest { version: version.to_owned() })?;
        Ok(self.client.current_policy(request).await?.into_inner())
    }

    /// Carries one change out; its serial number. None: the gateway refused it.
    async fn change(&mut self, change: &Change, archive: &[u8]) -> Result<Option<u64>, tonic::Status> {
        let internal = |error: anyhow::Error| tonic::Status::unknown(error.to_string());
        let message = "killed on the way, perhaps".to_owned();
        let push =
            PushPolicyRequest { archive: archive.to_vec(), message: message.clone(), ..Default::default() };
        let client = &mut self.client.clone();
        let answer = match change.how {
            "push" => client.push_policy(self.ask(push).map_err(internal)?).await,
            "rollback" => {
                let version = change.version.clone();
                let back = RollBackPolicyRequest { version, reason: message, ..Default::default() };
                client.roll_back_policy(self.ask(back).map_err(internal)?).await
            }
            "canary" => {
                let start = StartCanaryRequest {
                    push: Some(push),
                    hosts: vec![HOST.to_owned()],
                    share: 500,
                    ..Default::default()
                };
                client.start_canary(self.ask(start).map_err(internal)?).await
            }
            how => {
                let end = EndCanaryRequest { promote: how == "promotion", reason: message };
                client.end_canary(self.ask(end).map_err(internal)?).await
            }
        };
        match answer.map(tonic::Response::into_inner) {
            Ok(answer) if !answer.problems.is_empty() => {
                Err(tonic::Status::data_loss(format!("a sound bundle was refused: {:?}", answer.problems)))
            }
            Ok(answer) if answer.unchanged => Ok(None),
            Ok(answer) => Ok(Some(answer.serial)),
            Err(status) if matches!(status.code(), Code::FailedPrecondition | Code::NotFound) => Ok(None),
            Err(status) => Err(status),
        }
    }
}

/// Changes policy until the gateway is gone.
async fn keep_changing(
    mut console: Console,
    archives: Arc<BTreeMap<String, Vec<u8>>>,
    seen: Arc<Mutex<Seen>>,
    mut random: StdRng,
) -> Result<()> {
    let versions: Vec<&String> = archives.keys().collect();
    loop {
        let change = {
            let seen = &mut *seen.lock().unwrap_or_else(PoisonError::into_inner);
            let mut any = || versions[random.random_range(0..versions.len())].clone();
            let version = any();
            let (how, version) = match (&seen.canary, random.random_range(0..3)) {
                (Some(canary), 0) => ("promotion", canary.clone()),
                (Some(_), _) => ("abort", seen.stable.clone()),
                (None, 0) => ("canary", version),
                (None, 1) => ("rollback", version),
                (None, _) => ("push", version),
            };
            if seen.canary.is_none() && version == seen.stable {
                continue;
            }
            let change = Change { how, version };
            seen.open = Some(change.clone());
            change
        };
        let answer = console.change(&change, &archives[&change.version]).await;
        let seen = &mut *seen.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(serial) => {
                seen.open = None;
                let Some(serial) = serial else { continue };
                seen.canary = (change.how == "canary").then(|| change.version.clone());
                if change.how != "canary" {
                    seen.stable.clone_from(&change.version);
                }
                seen.acknowledged.insert(serial, change);
            }
            // The connection broke: what was asked for last may have happened or not.
            Err(status)
                if matches!(
                    status.code(),
                    Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
                ) =>
            {
                return Ok(());
            }
            Err(status) => bail!("{change:?}: {status}"),
        }
    }
}

/// Everything that is known to have happened, by serial number.
struct History {
    archives: Arc<BTreeMap<String, Vec<u8>>>,
    done: BTreeMap<u64, Change>,
}

impl History {
    /// What the gateway says after a start, against what its clients were told before. Gives what is in force and tried.
    async fn check(&mut self, console: &mut Console, seen: &Seen) -> Result<(String, Option<String>)> {
        let listed = console.list().await?;
        let newest = listed.versions.first().context("no version is listed")?;
        let serials: Vec<u64> = listed.versions.iter().map(|version| version.serial).collect();
        ensure!(serials.is_sorted_by(|newer, older| newer > older), "serial numbers: {serials:?}");

        let before = self.done.last_key_value().map_or(0, |(serial, _)| *serial);
        ensure!(newest.serial >= before, "serial {} came after {before}", newest.serial);
        for (serial, change) in &seen.acknowledged {
            ensure!(*serial > before, "{change:?} was acknowledged as {serial} after {before}");
        }
        self.done.extend(seen.acknowledged.clone());
        let mut unknown = Vec::new();
        for version in listed.versions.iter().rev() {
            let is = (version.how.as_str(), version.version.as_str());
            match self.done.get(&version.serial) {
                Some(change) => {
                    ensure!((change.how, change.version.as_str()) == is, "{change:?} became {is:?}")
                }
                None => unknown.push(version),
            }
        }
        let kept: BTreeSet<u64> = serials.iter().copied().collect();
        let lost: Vec<_> = self.done.iter().filter(|(serial, _)| !kept.contains(serial)).collect();
        ensure!(lost.is_empty(), "acknowledged, and lost: {lost:?}");
        // Of what nobody was told about there is at most what was being asked for, and it is the newest.
        match (unknown.as_slice(), &seen.open) {
            ([], _) => {}
            ([one], Some(open)) if one.how == open.how && one.version == open.version => {
                ensure!(one.serial == newest.serial, "{open:?} came before what was acknowledged");
                self.done.insert(one.serial, open.clone());
            }
            (unknown, open) => bail!("nobody asked for {unknown:?}; open: {open:?}"),
        }

        let stable =
            listed.versions.iter().find(|version| version.how != "canary").context("nothing in force")?;
        ensure!(
            listed.serial_in_force == stable.serial,
            "{} is in force of {serials:?}",
            listed.serial_in_force
        );
        let canary =
            listed.canary.as_ref().filter(|canary| canary.state == "running").map(|c| c.version.clone());
        ensure!(
            canary == (newest.how == "canary").then(|| newest.version.clone()),
            "{:?} after {newest:?}",
            listed.canary
        );
        let now = console.show("").await?;
        ensure!(
            now.in_force && now.version == stable.version,
            "{} is shown, {stable:?} is listed",
            now.version
        );
        for version in listed.versions.iter().map(|version| &version.version).collect::<BTreeSet<_>>() {
            let shown = console.show(version).await.with_context(|| format!("show {version}"))?;
            ensure!(hex::encode(Sha256::digest(&shown.archive)) == *version, "{version} is not whole");
            ensure!(self.archives.get(version) == Some(&shown.archive), "{version} is not what was pushed");
        }
        Ok((stable.version.clone(), canary))
    }

    /// Each serial number that was ever given is on the record: as a change, once, or as one that never was.
    fn on_record(&self, person: &Person) -> Result<usize> {
        let mut all = events::all(person, &["--kind", "policy"])?;
        // Sensors say what they make of it, too; that is no change.
        all.retain(|entry| {
            let decision = entry.record.decision.as_ref();
            entry.record.source.maker == "gateway" && decision.is_some_and(|it| it.action == "push_policy")
        });
        let mut interrupted = 0;
        for serial in 1..=self.done.last_key_value().map_or(0, |(serial, _)| *serial) {
            let about = |entry: &&events::Entry| {
                let message = entry.record.message.as_deref().unwrap_or_default();
                message.contains(&format!("(serial {serial})"))
            };
            let told: Vec<_> = all.iter().filter(about).collect();
            let denials = told.iter().filter(|entry| entry.is_denial()).count();
            let happened = self.done.contains_key(&serial);
            // A start that is killed, too, may leave its successor to say again that a change never was.
            let right =
                if happened { (told.len(), denials) == (1, 0) } else { denials > 0 && denials == told.len() };
            let messages = told.iter().map(|entry| entry.record.message.clone());
            ensure!(right, "serial {serial}, {happened}: {:#?}", messages.collect::<Vec<_>>());
            interrupted += usize::from(!happened);
        }
        Ok(interrupted)
    }
}

/// The bundles as the gateway takes them, by version.
fn archives(stage: &Stage, person: &Person) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut archives = BTreeMap::new();
    for n in 0..VERSIONS {
        let folder = if n == 0 { bundles::small()? } else { stage.folder().join(format!("bundle-{n}")) };
        if n > 0 {
            bundles::write_changed(&folder)?;
            let rule = folder.join("incident.cedar");
            let text = std::fs::read_to_string(&rule)?;
            std::fs::write(&rule, text.replace("/usr/bin/truncate", &format!("/usr/bin/truncate-{n}")))?;
        }
        let file = stage.folder().join(format!("archive-{n}"));
        let ran = person
            .run(&["policy", "archive", &folder.to_string_lossy(), &file.to_string_lossy()])?
            .success()?;
        archives.insert(ran.out().trim().to_owned(), std::fs::read(&file)?);
    }
    ensure!(archives.len() == VERSIONS, "the bundles are not different");
    Ok(archives)
}

/// The bearer token that signing in left.
fn token(person: &Person) -> Result<String> {
    let folder = person.home.join(".config/sallyport/gateways");
    let profile = std::fs::read_dir(&folder)?.next().context("nobody has signed in")??.path();
    let profile: serde_json::Value = serde_json::from_slice(&std::fs::read(profile)?)?;
    Ok(profile["token"].as_str().context("a profile without token")?.to_owned())
}

/// What the sensor itself says that it enforces: version and canary.
fn enforced(folder: &Path) -> Option<(String, String)> {
    let status: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("run/status.json")).ok()?).ok()?;
    Some((status["policy"].as_str()?.to_owned(), status["canary"].as_str()?.to_owned()))
}

#[test]
fn a_gateway_killed_at_random_in_changes_of_policy_loses_and_halves_nothing() -> Result<()> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("SALLYPORT_SEED").unwrap_or_else(rand::random);
    let kills = number("SALLYPORT_KILLS").unwrap_or(KILLS);
    println!("SALLYPORT_SEED={seed} SALLYPORT_KILLS={kills}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::start(&StageOptions { bundle: bundles::small()?, ..StageOptions::default() })?;
    let sam = stage.signed_in("sam")?;
    stage.wait_for_sensor(&stage.signed_in("alice")?)?;
    let token = token(&sam)?;
    let archives = Arc::new(archives(&stage, &sam)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut console = runtime.block_on(Console::connect(&stage, &token))?;
    let first = runtime.block_on(console.list())?.versions.pop().context("no first version")?;
    let start = Change { how: "start", version: first.version.clone() };
    let mut history = History { archives: archives.clone(), done: BTreeMap::from([(first.serial, start)]) };
    let (mut stable, mut canary) = (first.version, None);
    let (mut n_open, mut n_happened, mut n_starting) = (0, 0, 0);
    let began = Instant::now();

    for round in 1..=kills {
        let begin = Seen { stable: stable.clone(), canary: canary.clone(), ..Seen::default() };
        let seen = Arc::new(Mutex::new(begin));
        let own = StdRng::seed_from_u64(random.random());
        let changing = runtime.spawn(keep_changing(console, archives.clone(), seen.clone(), own));
        std::thread::sleep(random.random_range(Duration::ZERO..LATEST));
        stage.gateway()?.kill_hard()?;
        runtime.block_on(changing)?.with_context(|| format!("round {round}"))?;
        if random.random_ratio(1, 3) {
            // Once more, while it starts.
            let log = stage.folder().join("gateway.log");
            let mut starting = Running::start("the gateway", &mut stage.gateway_command(&["run"])?, &log)?;
            std::thread::sleep(random.random_range(Duration::ZERO..Duration::from_millis(300)));
            starting.kill_hard()?;
            n_starting += 1;
        }
        stage.start_gateway()?;

        let seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
        console = runtime.block_on(Console::connect(&stage, &token))?;
        let known = history.done.len() + seen.acknowledged.len();
        (stable, canary) = runtime
            .block_on(history.check(&mut console, &seen))
            .with_context(|| format!("round {round}: {seen:?}\n{}", stage.gateway_log(15)))?;
        n_open += usize::from(seen.open.is_some());
        n_happened += history.done.len() - known;
        let verified = sam.run(&["verify"])?;
        ensure!(verified.code() == 0, "round {round}: {}{}", verified.out(), verified.err());

        if round % SENSOR_EVERY == 0 {
            stage.sensor()?.kill_hard()?;
            stage.start_sensor()?;
        }
        let wanted = (stable.clone(), canary.clone().unwrap_or_default());
        wait::until("the sensor to enforce what is in force", wait::PATIENCE, || {
            let listed = runtime.block_on(console.list())?;
            let sensor = listed.sensors.iter().find(|sensor| sensor.host == HOST).context("no sensor")?;
            let told = (sensor.version.clone(), sensor.canary_version.clone());
            let agreed = sensor.connected && sensor.drift.is_empty() && told == wanted;
            Ok((agreed && enforced(stage.folder()).as_ref() == Some(&wanted)).then_some(()))
        })
        .with_context(|| format!("round {round}: {seen:?}\nthe sensor says:\n{}", stage.sensor_log(15)))?;
    }

    let interrupted = history.on_record(&sam)?;
    println!(
        "{kills} kills in {} s, {n_starting} more while it started: {} changes, {n_open} open at a kill, of which \
         {n_happened} came into force and {interrupted} are on the record as interrupted",
        began.elapsed().as_secs(),
        history.done.len()
    );
    // Else nothing was tried.
    ensure!(n_open as u64 * 4 >= kills, "hardly any kill met a change: {n_open} of {kills}");
    ensure!(history.done.len() as u64 * 2 >= kills, "hardly anything changed: {}", history.done.len());
    let out = stage.folder().join("extracted");
    let extracted = sam.run(&["policy", "show", &stable, "--extract", &out.to_string_lossy()])?;
    ensure!(extracted.code() == 0, "{}{}", extracted.out(), extracted.err());
    Ok(())
}
