//! The pipelines of docs/ci, run as they are written: their command lines in a shell, against a real gateway, with tokens
//! that an issuer signs for the job. What must not work is tried beside it, and secrets are looked for in the logs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::child::{Finished, finish};
use sallyport_e2e::command_line::Person;
use sallyport_e2e::{Stage, StageOptions, pipeline, programs, wait, web};
use serde_json::Value;
use url::Url;

/// How every token of a job begins: `{"alg":"RS256",`.
const TOKENS_BEGIN: &str = "eyJhbGciOiJSUzI1NiIs";

fn documentation(name: &str) -> Result<String> {
    let path = programs::package_file("../docs/ci").join(name);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// The blocks of a language in the page.
fn blocks(language: &str) -> Result<Vec<String>> {
    let page = documentation("README.md")?;
    let begin = format!("```{language}\n");
    let found = page.split(&begin).skip(1).filter_map(|rest| rest.split("```").next());
    Ok(found.map(str::to_owned).collect())
}

/// A repository with the bundle, a gateway that has its first version in force, and a key to sign with.
struct Scene {
    stage: Stage,
    repository: PathBuf,
    key: String,
    sam: Person,
    first: String,
}

fn git(folder: &Path, arguments: &[&str]) -> Result<String> {
    let who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false"];
    let mut command = Command::new("git");
    command.arg("-C").arg(folder).args(who).args(arguments);
    Ok(finish(&mut command, b"", wait::PATIENCE)?.success()?.out().trim().to_owned())
}

impl Scene {
    /// `system`: `github` or `gitlab`; `two_person` as in the configuration.
    fn new(system: &str, two_person: bool) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("sallyport-ci-").tempdir()?.keep();
        let repository = folder.join("repository");
        let bundle = repository.join("policy");
        std::fs::create_dir_all(bundle.join("tests"))?;
        let rules = blocks("cedar")?
            .first()
            .context("no rules in the page")?
            .replace("github:", &format!("{system}:"));
        std::fs::write(
            bundle.join("bundle.toml"),
            "name = \"acme\"\nschema = 2\ncontact = \"security@example.org\"\n",
        )?;
        let group = r#"[{ "uid": { "type": "Group", "id": "security" }, "attrs": {}, "parents": [] }]"#;
        std::fs::write(bundle.join("entities.json"), group)?;
        std::fs::write(bundle.join("rules.cedar"), &rules)?;
        std::fs::write(
            bundle.join("tests/ci.toml"),
            format!(
                "[people.job]\nuser = \"{system}:acme/policies@refs/heads/main\"\nkind = \"ci\"\n[[case]]\nwho = \"job\"\n\
             gateway = \"push_policy\"\nexpect = \"allow\"\n\
             change = {{ repository = \"acme/policies\", ref_protected = true, environment = \"production\" }}\n"
            ),
        )?;
        let sallyport = |arguments: &[&str]| -> Result<String> {
            let mut command = Command::new(programs::path("sallyport")?);
            command.args(arguments).current_dir(&repository);
            Ok(finish(&mut command, b"", wait::PATIENCE)?.success()?.out().trim().to_owned())
        };
        // As on the page.
        let keygen = blocks("sh")?.into_iter().find(|block| block.contains("keygen")).context("no keygen")?;
        let arguments: Vec<&str> = keygen.split_whitespace().skip(1).collect();
        let verifier = sallyport(&arguments)?;
        let key = std::fs::read_to_string(repository.join("release.key"))?.trim().to_owned();
        let first = sallyport(&["policy", "version", "policy"])?;
        git(&repository, &["init", "-q", "-b", "main"])?;
        git(&repository, &["add", "policy"])?;
        git(&repository, &["commit", "-q", "-m", "First rules"])?;
        let options = StageOptions {
            bundle: bundle.clone(),
            sensor: false,
            gateway_config: format!(
                "signers = [\"{verifier}\"]\nrequire_signature = true\ntwo_person = {two_person}\n\
                 [[ci]]\nname = \"{system}\"\nkind = \"{system}\"\nissuer = \"ISSUER/{system}\"\naudience = \"GRPC\"\n"
            ),
            gateway_log: "debug",
            ..StageOptions::default()
        };
        let stage = Stage::start(&options)?;
        let sam = stage.signed_in("sam")?;
        Ok(Self { stage, repository, key, sam, first })
    }

    /// A change of the bundle, committed; gives the commit and the version.
    fn commit(&self, comment: &str) -> Result<(String, String)> {
        let path = self.repository.join("policy/rules.cedar");
        let rules = std::fs::read_to_string(&path)?;
        std::fs::write(&path, format!("{rules}// {comment}\n"))?;
        git(&self.repository, &["add", "policy"])?;
        git(&self.repository, &["commit", "-q", "-m", comment])?;
        let mut command = Command::new(programs::path("sallyport")?);
        command.args(["policy", "version", "policy"]).current_dir(&self.repository);
        let version = finish(&mut command, b"", wait::PATIENCE)?.success()?.out().trim().to_owned();
        Ok((git(&self.repository, &["rev-parse", "HEAD"])?, version))
    }

    fn in_force(&self) -> Result<Value> {
        self.sam.json(&["policy", "show"])?.into_iter().next().context("nothing was shown")
    }

    /// Starts a job at the issuer; gives its answer.
    fn start_job(&self, system: &str, claims: &[(&str, &str)]) -> Result<Value> {
        let url = Url::parse(&format!("{}/{system}/jobs", self.stage.openid()?.issuer))?;
        let fields: Vec<(String, String)> =
            claims.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let page = web::request(&url, "", Some(&fields))?;
        serde_json::from_str(&page.body).with_context(|| page.body)
    }

    /// Runs command lines as a runner does: one shell each, ending with the first that fails.
    fn run(&self, lines: &[String], environment: &BTreeMap<String, String>) -> Result<Vec<Finished>> {
        let mut done = Vec::new();
        for line in lines {
            let mut command = Command::new("bash");
            command.args(["-e", "-o", "pipefail", "-c", line]).current_dir(&self.repository).env_clear();
            let path = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{path}", programs::folder()?.display()));
            command.env("HOME", self.repository.join("../runner")).envs(environment);
            let finished = finish(&mut command, b"", wait::PATIENCE)?;
            let failed = finished.code() != 0;
            done.push(finished);
            if failed {
                break;
            }
        }
        Ok(done)
    }

    /// What the pipelines are told about the gateway.
    fn variables(&self) -> BTreeMap<String, String> {
        [
            ("SALLYPORT_GATEWAY", format!("https://127.0.0.1:{}", self.stage.addresses.grpc.port())),
            ("SALLYPORT_GATEWAY_NAME", "gateway".to_owned()),
            ("SALLYPORT_CA_SHA256", self.stage.ca_sha256.clone()),
            ("SALLYPORT_SIGNING_KEY", self.key.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// No secret is in the gateway's log, in the evidence, or in what the commands printed.
    fn keeps_secrets(&self, secrets: &[&str], ran: &[Finished]) -> Result<()> {
        let mut texts = vec![std::fs::read_to_string(self.stage.folder().join("gateway.log"))?];
        ensure!(texts[0].contains("DEBUG"), "the gateway's log is not as talkative as it was meant to be");
        let events = self.sam.json(&["events", "--limit", "0"])?;
        texts.push(events.iter().map(Value::to_string).collect());
        texts.extend(ran.iter().flat_map(|finished| [finished.out(), finished.err()]));
        for secret in secrets {
            // The middle of a token is enough to know it by.
            let part = &secret[secret.len() / 3..2 * secret.len() / 3];
            ensure!(
                !part.is_empty() && !texts.iter().any(|text| text.contains(part)),
                "a secret was written down"
            );
        }
        ensure!(!texts.iter().any(|text| text.contains(TOKENS_BEGIN)), "a token was written down");
        Ok(())
    }

    fn refusals(&self) -> Result<Vec<String>> {
        let events =
            self.sam.json(&["events", "--kind", "policy", "--outcome", "blocked", "--limit", "0"])?;
        Ok(events.iter().map(Value::to_string).collect())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(folder) = self.repository.parent() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// What a GitHub job's steps run, with the environment of the job and of the step.
fn github_steps(
    job: &str,
    variables: &BTreeMap<String, String>,
) -> Result<Vec<(String, BTreeMap<String, String>)>> {
    let workflow = pipeline::parse(&documentation("github-actions.yml")?)?;
    let job = &workflow["jobs"][job];
    let resolve = |environment: &Value| -> Result<BTreeMap<String, String>> {
        let pairs = environment.as_object().into_iter().flatten();
        pairs
            .map(|(name, value)| {
                let value = value.as_str().context("an environment of texts")?;
                let inner = value.strip_prefix("${{ ").and_then(|rest| rest.strip_suffix(" }}"));
                let Some((_, variable)) = inner.and_then(|inner| inner.split_once('.')) else {
                    return Ok((name.clone(), value.to_owned()));
                };
                let value = variables.get(variable).with_context(|| format!("{variable} is not set"))?;
                Ok((name.clone(), value.clone()))
            })
            .collect()
    };
    let of_job = resolve(&job["env"])?;
    let steps = job["steps"].as_array().context("no steps")?;
    steps
        .iter()
        .filter_map(|step| Some((step, step["run"].as_str()?)))
        .map(|(step, run)| {
            let mut environment = of_job.clone();
            environment.extend(resolve(&step["env"])?);
            Ok((run.to_owned(), environment))
        })
        .collect()
}

fn github_claims<'a>(commit: &'a str, reference: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("sub", "repo:acme/policies:environment:production"),
        ("repository", "acme/policies"),
        ("repository_owner", "acme"),
        ("ref", reference),
        ("ref_type", "branch"),
        ("ref_protected", "true"),
        ("environment", "production"),
        ("sha", commit),
        ("actor", "octocat"),
        ("event_name", "push"),
        ("workflow_ref", "acme/policies/.github/workflows/policy.yml@refs/heads/main"),
    ]
}

#[test]
fn the_github_workflow_pushes_and_only_from_the_main_branch() -> Result<()> {
    let scene = Scene::new("github", false)?;
    assert_eq!(scene.in_force()?["version"], scene.first.as_str());
    let (commit, version) = scene.commit("close the scanners")?;
    let variables = scene.variables();
    let with_job = |job: &Value, environment: &BTreeMap<String, String>| {
        let mut environment = environment.clone();
        for (name, value) in [
            ("GITHUB_ACTIONS", "true"),
            ("GITHUB_SHA", commit.as_str()),
            ("ACTIONS_ID_TOKEN_REQUEST_URL", job["url"].as_str().unwrap_or_default()),
            ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", job["token"].as_str().unwrap_or_default()),
        ] {
            environment.insert(name.to_owned(), value.to_owned());
        }
        environment
    };
    let mut ran = Vec::new();
    for (line, environment) in github_steps("check", &variables)? {
        ran.extend(scene.run(&[line], &environment)?);
    }
    assert_eq!((ran.len(), ran.iter().all(|finished| finished.code() == 0)), (3, true), "{ran:?}");

    // The same steps in a job of another branch: signed as it may be, it is refused, and nothing changes.
    let steps = github_steps("push", &variables)?;
    assert_eq!(steps.len(), 2);
    let stranger = scene.start_job("github", &github_claims(&commit, "refs/heads/feature"))?;
    let mut refused = Vec::new();
    for (line, environment) in &steps {
        refused = scene.run(std::slice::from_ref(line), &with_job(&stranger, environment))?;
    }
    assert_eq!(refused[0].code(), 1, "{refused:?}");
    assert!(
        refused[0].err().contains("github:acme/policies@refs/heads/feature may not push policy"),
        "{refused:?}"
    );
    assert_eq!(scene.in_force()?["version"], scene.first.as_str());
    ran.append(&mut refused);

    // Without the permission to ask for a token, the command says what is missing.
    let mut without = steps[1].1.clone();
    without.insert("GITHUB_ACTIONS".to_owned(), "true".to_owned());
    let lost = scene.run(&[steps[1].0.clone()], &without)?;
    assert_eq!(lost[0].code(), 3, "{lost:?}");
    assert!(lost[0].err().contains("id-token: write"), "{lost:?}");

    let job = scene.start_job("github", &github_claims(&commit, "refs/heads/main"))?;
    // Unsigned: refused.
    let unsigned = steps[1].0.replace(" --signature bundle.sig", "");
    let refused = scene.run(&[unsigned], &with_job(&job, &steps[1].1))?;
    assert!(refused[0].err().contains("takes signed versions only"), "{refused:?}");
    for (line, environment) in &steps {
        let done = scene.run(std::slice::from_ref(line), &with_job(&job, environment))?;
        assert_eq!(done[0].code(), 0, "{line}: {done:?}");
        ran.extend(done);
    }
    let shown = scene.in_force()?;
    assert_eq!((&shown["version"], &shown["commit"]), (&Value::from(version), &Value::from(commit.clone())));
    assert_eq!(scene.refusals()?.len(), 2);

    // The page's way without the command: another version, signed by its first step.
    let (commit, version) = scene.commit("by curl")?;
    let job = scene.start_job("github", &github_claims(&commit, "refs/heads/main"))?;
    let mut environment = with_job(&job, &steps[0].1);
    environment.insert("GITHUB_SHA".to_owned(), commit);
    let ca = scene.stage.folder().join("gateway/ca.pem").to_string_lossy().into_owned();
    environment.insert("SALLYPORT_CA_FILE".to_owned(), ca);
    let curl = blocks("sh")?.into_iter().find(|block| block.contains("curl")).context("no curl")?;
    let done = scene.run(&[steps[0].0.clone(), curl], &environment)?;
    assert!(done.iter().all(|finished| finished.code() == 0), "{done:?}");
    assert_eq!(scene.in_force()?["version"], version.as_str());
    ran.extend(done);

    let lent = |job: &Value| job["token"].as_str().unwrap_or_default().to_owned();
    let answer = std::fs::read_to_string(scene.repository.join("answer.json"))?;
    assert!(answer.contains("in_force"));
    scene.keeps_secrets(&[&scene.key, &lent(&stranger), &lent(&job)], &ran)
}

#[test]
fn the_gitlab_pipeline_proposes_and_another_person_approves() -> Result<()> {
    let scene = Scene::new("gitlab", true)?;
    let (commit, version) = scene.commit("close the scanners")?;
    let config = pipeline::parse(&documentation("gitlab-ci.yml")?)?;
    let script = |job: &str| -> Result<Vec<String>> {
        let lines = config[job]["script"].as_array().context("no script")?;
        Ok(lines.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    };
    let mut environment = scene.variables();
    let checked = scene.run(&script("check")?, &environment)?;
    assert_eq!(
        (checked.len(), checked.iter().all(|finished| finished.code() == 0)),
        (3, true),
        "{checked:?}"
    );

    let audience =
        config["push"]["id_tokens"]["SALLYPORT_ID_TOKEN"]["aud"].as_str().context("no audience")?;
    let audience = environment[audience.trim_start_matches('$')].clone();
    let job = |audience: &str| -> Result<String> {
        let claims = [
            ("aud", audience),
            ("sub", "project_path:acme/policies:ref_type:branch:ref:main"),
            ("project_path", "acme/policies"),
            ("ref", "main"),
            ("ref_type", "branch"),
            ("ref_path", "refs/heads/main"),
            ("ref_protected", "true"),
            ("environment", "production"),
            ("sha", &commit),
            ("user_login", "alice"),
            ("user_email", "alice@example.org"),
            ("ci_config_ref_uri", "gitlab.com/acme/policies//.gitlab-ci.yml@refs/heads/main"),
        ];
        Ok(scene.start_job("gitlab", &claims)?["id_token"].as_str().context("no token")?.to_owned())
    };
    environment.insert("GITLAB_CI".to_owned(), "true".to_owned());
    // A token for somebody else.
    let foreign = job("https://another.example.org")?;
    environment.insert("SALLYPORT_ID_TOKEN".to_owned(), foreign.clone());
    let refused = scene.run(&script("push")?, &environment)?;
    assert_eq!((refused.len(), refused[1].code()), (2, 3), "{refused:?}");
    assert!(refused[1].err().contains("audience"), "{refused:?}");

    let token = job(&audience)?;
    assert!(token.starts_with(TOKENS_BEGIN), "what is looked for is what there is");
    environment.insert("SALLYPORT_ID_TOKEN".to_owned(), token.clone());
    let done = scene.run(&script("push")?, &environment)?;
    assert!(done.iter().all(|finished| finished.code() == 0), "{done:?}");
    assert!(done[1].out().contains("another person must approve it"), "{done:?}");
    assert_eq!(scene.in_force()?["version"], scene.first.as_str(), "it only waits");

    let waiting = scene.sam.json(&["policy", "proposals"])?;
    assert_eq!(waiting[0]["proposals"][0]["version"], version.as_str());
    assert_eq!(waiting[0]["proposals"][0]["signed_by"], serde_json::json!(["release"]));
    // Whoever started the job has no say; nor has somebody without the right.
    let alice = scene.stage.signed_in("alice")?;
    let own = alice.run(&["policy", "approve", &version])?;
    assert_eq!(own.code(), 1, "{own:?}");
    assert_eq!(scene.in_force()?["version"], scene.first.as_str());
    let approved = scene.sam.run(&["policy", "approve", &version[..12], "--reason", "looked at it"])?;
    assert_eq!(approved.code(), 0, "{approved:?}");
    assert_eq!(scene.in_force()?["version"], version.as_str());
    let refusals = scene.refusals()?;
    assert_eq!(refusals.len(), 2, "{refusals:?}");
    let ran: Vec<Finished> = [checked, refused, done].into_iter().flatten().collect();
    scene.keeps_secrets(&[&scene.key, &token, &foreign], &ran)
}
