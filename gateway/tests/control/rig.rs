//! A gateway in a temporary folder, and clients of it.

use sallyport_contract::v1::console_client::ConsoleClient;
use sallyport_contract::v1::enrolment_client::EnrolmentClient;
use sallyport_contract::v1::sensor_link_client::SensorLinkClient;
use sallyport_contract::v1::{JoinRequest, SignInOptionsResponse, SignInRequest};
use sallyport_evidence::Record;
use sallyport_evidence::record::Identity;
use sallyport_evidence::verify::Report;
use sallyport_gateway::config::{self, Config};
use sallyport_gateway::console::{SignIn, SignInError, SignedIn};
use sallyport_gateway::{Gateway, recorder};
use sallyport_policy::Bundle;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity};
use tonic::{Request, Status};

/// alice may reach web-1 as root and www, bob as nobody; carol manages everything.
pub(crate) const POLICY: &str = r#"
@id("engineers-reach-web")
permit (principal in Group::"engineers", action == Action::"open_session", resource == Host::"web-1")
when { context.local_user == "root" || context.local_user == "www" };
@id("one-way-to-web-2")
permit (principal in Group::"engineers", action == Action::"open_session", resource == Host::"web-2")
when { context.local_user == "app" };
@id("run-anything")
permit (principal, action in [Action::"exec", Action::"connect"], resource);
@id("carol-manages")
permit (principal == User::"carol", action in [Action::"push_policy", Action::"read_evidence", Action::"manage_sensors", Action::"end_sessions"], resource == Gateway::"gateway");
"#;

pub(crate) struct Rig {
    pub(crate) dir: TempDir,
    pub(crate) gateway: Gateway,
    pub(crate) grpc: SocketAddr,
    server: JoinHandle<()>,
}

/// A sensor's certificate and key, PEM.
#[derive(Clone)]
pub(crate) struct Joined {
    pub(crate) certificate: String,
    pub(crate) key: String,
    /// What the gateway signs orders with.
    pub(crate) policy_key: String,
}

/// Signs in whoever names themselves: `id_token` is `user:group,group`.
struct Anyone;

#[tonic::async_trait]
impl SignIn for Anyone {
    fn options(&self) -> SignInOptionsResponse {
        SignInOptionsResponse {
            ssh_host: "gateway.test".into(),
            ssh_port: 2222,
            ..SignInOptionsResponse::default()
        }
    }
    async fn sign_in(&self, request: &SignInRequest, _: SocketAddr) -> Result<SignedIn, SignInError> {
        let (user, groups) = request.id_token.split_once(':').ok_or(SignInError("no such person".into()))?;
        Ok(SignedIn {
            identity: person(user, groups),
            expires_at: SystemTime::now() + Duration::from_secs(600),
            ssh_certificate: String::new(),
            ssh_host_ca: String::new(),
        })
    }
}

pub(crate) fn person(user: &str, groups: &str) -> Identity {
    Identity {
        user: user.into(),
        groups: groups.split(',').filter(|g| !g.is_empty()).map(str::to_owned).collect(),
        kind: "human".into(),
        issuer: "https://id.test".into(),
        subject: user.into(),
        method: "token".into(),
        ..Identity::default()
    }
}

pub(crate) fn bundle(policy: &str) -> Bundle {
    let manifest = "name = \"test\"\nschema = 2\ncontact = \"security@test\"\n";
    let entities = r#"[
        {"uid":{"type":"Group","id":"engineers"},"attrs":{},"parents":[]},
        {"uid":{"type":"Host","id":"web-1"},"attrs":{},"parents":[]},
        {"uid":{"type":"Host","id":"web-2"},"attrs":{},"parents":[]}
    ]"#;
    let files = [("bundle.toml", manifest), ("test.cedar", policy), ("entities.json", entities)];
    Bundle::from_files(files.map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec()))).unwrap()
}

pub(crate) fn config(dir: &Path) -> Config {
    let text = config::default_text()
        .replace("/var/lib/sallyport-gateway", dir.join("state").to_str().unwrap())
        .replace("name = \"gateway.example.org\"", "name = \"gateway.test\"")
        .replace("0.0.0.0:8443", "127.0.0.1:0")
        .replace("0.0.0.0:2222", "127.0.0.1:0")
        .replace("reattach_grace = \"60s\"", "reattach_grace = \"4s\"")
        .replace("# names = [\"gateway.example.org\", \"192.0.2.7\"]", "names = [\"localhost\"]");
    let mut config = Config::parse(&text).unwrap();
    let bundle = dir.join("bundle");
    std::fs::create_dir_all(&bundle).unwrap();
    for path in self::bundle(POLICY).paths() {
        std::fs::write(bundle.join(path), self::bundle(POLICY).file(path).unwrap()).unwrap();
    }
    config.policy_bundle = Some(bundle);
    config
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), |_| {}).await
    }

    pub(crate) async fn start_in(dir: TempDir, adjust: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(dir.path());
        adjust(&mut config);
        let gateway = Gateway::start(config).await.unwrap();
        let server = gateway.bind_grpc(Arc::new(Anyone)).await.unwrap();
        let grpc = server.address().unwrap();
        let server = tokio::spawn(async move { server.serve().await.unwrap() });
        Self { dir, gateway, grpc, server }
    }

    /// Stops as on SIGTERM; gives the folder and what `verify` says of it.
    pub(crate) async fn stop(self) -> (TempDir, Report) {
        self.gateway.stop().await;
        tokio::time::timeout(Duration::from_secs(10), self.server).await.unwrap().unwrap();
        let report = verify(self.dir.path());
        (self.dir, report)
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("https://localhost:{}", self.grpc.port())).unwrap()
    }

    pub(crate) fn tls(&self) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.gateway.authority.certificate_pem()))
    }

    pub(crate) async fn anonymous(&self) -> Channel {
        self.endpoint().tls_config(self.tls()).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn try_as_sensor(
        &self,
        joined: &Joined,
    ) -> Result<SensorLinkClient<Channel>, tonic::transport::Error> {
        let identity = TlsIdentity::from_pem(&joined.certificate, &joined.key);
        let channel = self.endpoint().tls_config(self.tls().identity(identity))?.connect().await?;
        Ok(SensorLinkClient::new(channel))
    }

    pub(crate) async fn as_sensor(&self, joined: &Joined) -> SensorLinkClient<Channel> {
        self.try_as_sensor(joined).await.unwrap()
    }

    pub(crate) async fn join_token(&self, host: &str) -> String {
        let ttl = Duration::from_secs(60);
        sallyport_gateway::state::tokens::create_join(&self.gateway.state, host, ttl).await.unwrap().secret
    }

    pub(crate) async fn join_with(&self, token: &str) -> Result<Joined, Status> {
        let key = rcgen::KeyPair::generate().unwrap();
        let csr_pem = csr(&key);
        let request = JoinRequest { token: token.into(), csr_pem, facts: None };
        let joined = EnrolmentClient::new(self.anonymous().await).join(request).await?.into_inner();
        Ok(Joined {
            certificate: joined.certificate_pem,
            key: key.serialize_pem(),
            policy_key: joined.policy_key,
        })
    }

    pub(crate) async fn join(&self, host: &str) -> Joined {
        self.join_with(&self.join_token(host).await).await.unwrap()
    }

    pub(crate) async fn console(&self, user: &str, groups: &str) -> Console {
        ConsoleClient::with_interceptor(self.anonymous().await, Bearer(self.token(user, groups).await))
    }

    /// The bearer token of a person who has signed in.
    pub(crate) async fn token(&self, user: &str, groups: &str) -> String {
        let request = SignInRequest { id_token: format!("{user}:{groups}"), ..SignInRequest::default() };
        ConsoleClient::new(self.anonymous().await).sign_in(request).await.unwrap().into_inner().token
    }

    /// All records, parsed, without waiting for more.
    pub(crate) async fn records(&self) -> Vec<Record> {
        let entries = self
            .gateway
            .authorizer
            .log_reader()
            .range(&Default::default(), 0, u64::MAX, 100_000)
            .await
            .unwrap();
        entries.iter().map(|entry| Record::from_bytes(&entry.record).unwrap()).collect()
    }
}

pub(crate) type Console = ConsoleClient<InterceptedService<Channel, Bearer>>;

#[derive(Clone)]
pub(crate) struct Bearer(pub(crate) String);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value = MetadataValue::try_from(format!("Bearer {}", self.0)).unwrap();
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

pub(crate) fn csr(key: &rcgen::KeyPair) -> String {
    rcgen::CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

pub(crate) fn verify(dir: &Path) -> Report {
    let evidence = dir.join("state/evidence");
    let key = recorder::verify::own_key(&evidence, "gateway.test").unwrap();
    recorder::verify::verify(&evidence, &key, 0).unwrap()
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not in time: {what}");
}
