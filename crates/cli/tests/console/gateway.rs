//! A gateway's console over TLS: says what a test put into it, and keeps what it was asked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer as CaIssuer, KeyPair};
use russh::keys::ssh_key::{
    PrivateKey, PublicKey,
    certificate::{Builder, CertType},
    private::Ed25519Keypair,
};
use sallyport_contract::v1::{
    console_server::{Console, ConsoleServer},
    *,
};
use sallyport_evidence::{
    Checkpoint,
    merkle::{Frontier, leaf_hash},
    note::Signer,
};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Certificate, Identity, Server, ServerTlsConfig},
};

/// The token that signed-in people have.
pub(crate) const TOKEN: &str = "token-that-nobody-may-see";

/// What the gateway says and has heard.
pub(crate) struct State {
    pub(crate) issuer: String,
    pub(crate) records: Vec<Vec<u8>>,
    pub(crate) signed: u64,
    pub(crate) signer_seed: [u8; 32],
    pub(crate) targets: Vec<Target>,
    pub(crate) sessions: Vec<SessionInfo>,
    pub(crate) recording: Vec<u8>,
    pub(crate) pushed: Vec<PushPolicyRequest>,
    pub(crate) push_answer: PushPolicyResponse,
    pub(crate) proposals: Vec<Proposal>,
    pub(crate) settled: Vec<SettleProposalRequest>,
    pub(crate) policies: ListPoliciesResponse,
    pub(crate) rolled_back: Vec<RollBackPolicyRequest>,
    pub(crate) canaries: Vec<StartCanaryRequest>,
    pub(crate) canary_ends: Vec<EndCanaryRequest>,
    pub(crate) archive: Vec<u8>,
    pub(crate) signed_out: bool,
    pub(crate) refuse: bool,
}

/// The server.
#[derive(Clone)]
pub(crate) struct Gateway {
    pub(crate) url: String,
    pub(crate) ca_sha256: String,
    pub(crate) ca_pem: String,
    state: Arc<Mutex<State>>,
}

impl Gateway {
    pub(crate) async fn start(issuer: &str) -> Self {
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, "test CA");
        let ca_cert = ca.self_signed(&ca_key).expect("a CA");
        let key = KeyPair::generate().expect("a key");
        let leaf =
            CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).expect("parameters");
        let leaf = leaf.signed_by(&key, &CaIssuer::new(ca, ca_key)).expect("a certificate");
        let chain = format!("{}{}", leaf.pem(), ca_cert.pem());

        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let gateway = Self {
            url: format!("https://{}", tcp.local_addr().expect("an address")),
            ca_sha256: hex::encode(Sha256::digest(ca_cert.der())),
            ca_pem: ca_cert.pem(),
            state: Arc::new(Mutex::new(State {
                issuer: issuer.to_owned(),
                records: Vec::new(),
                signed: 0,
                signer_seed: [5; 32],
                targets: Vec::new(),
                sessions: Vec::new(),
                recording: Vec::new(),
                pushed: Vec::new(),
                push_answer: PushPolicyResponse::default(),
                proposals: Vec::new(),
                settled: Vec::new(),
                policies: ListPoliciesResponse::default(),
                rolled_back: Vec::new(),
                canaries: Vec::new(),
                canary_ends: Vec::new(),
                archive: Vec::new(),
                signed_out: false,
                refuse: false,
            })),
        };
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(chain, key.serialize_pem()))
            .ignore_client_order(false);
        let _: Certificate = Certificate::from_pem(&gateway.ca_pem);
        let service = ConsoleServer::new(gateway.clone());
        let server = Server::builder().tls_config(tls).expect("TLS").add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(tcp)));
        gateway
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signer(&self) -> Signer {
        Signer::new("gateway.test", &self.state().signer_seed).expect("a signer")
    }

    /// Everybody but the one with the token is sent away.
    fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let sent = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        if self.state().refuse {
            return Err(Status::permission_denied("rule \"evidence-for-soc\" forbids it\u{1b}[2J"));
        }
        if sent == Some(format!("Bearer {TOKEN}").as_str()) && !self.state().signed_out {
            Ok(())
        } else {
            Err(Status::unauthenticated("unknown token"))
        }
    }

    fn entries(&self, keep: impl Fn(u64) -> bool) -> Entries {
        let entries: Vec<Result<LogEntry, Status>> = self
            .state()
            .records
            .iter()
            .enumerate()
            .map(|(index, record)| LogEntry { index: index as u64, record: record.clone().into() })
            .filter(|entry| keep(entry.index))
            .map(Ok)
            .collect();
        tokio_stream::iter(entries)
    }
}

type Entries = tokio_stream::Iter<std::vec::IntoIter<Result<LogEntry, Status>>>;
type Chunks = tokio_stream::Iter<std::vec::IntoIter<Result<RecordingChunk, Status>>>;

fn ssh_ca(seed: u8) -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
}

fn in_an_hour() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    since.as_secs() + 3600
}

#[tonic::async_trait]
impl Console for Gateway {
    type EventsStream = Entries;
    type RecordingStream = Chunks;
    type LogStream = Entries;

    async fn sign_in_options(
        &self,
        _: Request<SignInOptionsRequest>,
    ) -> Result<Response<SignInOptionsResponse>, Status> {
        Ok(Response::new(SignInOptionsResponse {
            issuer: self.state().issuer.clone(),
            client_id: super::issuer::CLIENT.to_owned(),
            scopes: vec!["openid".to_owned(), "email".to_owned()],
            gateway_name: "gateway.test".to_owned(),
            ssh_host: "gw.example.org".to_owned(),
            ssh_port: 2222,
        }))
    }

    async fn sign_in(&self, request: Request<SignInRequest>) -> Result<Response<SignInResponse>, Status> {
        let request = request.into_inner();
        if request.id_token.split('.').count() != 3 || request.nonce.is_empty() {
            return Err(Status::unauthenticated("no ID token"));
        }
        assert_eq!(request.access_token, "access-secret");
        let key = PublicKey::from_openssh(&request.ssh_public_key).expect("a public key");
        let mut builder =
            Builder::new(vec![3; 16], key.key_data().clone(), 1, in_an_hour()).expect("a builder");
        builder
            .cert_type(CertType::User)
            .expect("kind")
            .valid_principal("alice@example.org")
            .expect("principal");
        let certificate = builder.sign(&ssh_ca(1)).expect("signed");
        self.state().signed_out = false;
        Ok(Response::new(SignInResponse {
            token: TOKEN.to_owned(),
            expires_at_ms: i64::try_from(in_an_hour()).expect("fits") * 1000,
            user: "alice@example.org".to_owned(),
            groups: vec!["engineers".to_owned()],
            ssh_certificate: certificate.to_openssh().expect("encoded"),
            ssh_host_ca: ssh_ca(2).public_key().to_openssh().expect("encoded"),
            log_key: self.signer().verifier().to_string(),
        }))
    }

    async fn sign_out(&self, request: Request<SignOutRequest>) -> Result<Response<SignOutResponse>, Status> {
        self.admit(&request)?;
        self.state().signed_out = true;
        Ok(Response::new(SignOutResponse {}))
    }

    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        self.admit(&request)?;
        Ok(Response::new(WhoAmIResponse {
            user: "alice@example.org".to_owned(),
            groups: vec!["engineers".to_owned()],
            kind: "human".to_owned(),
            expires_at_ms: i64::try_from(in_an_hour()).expect("fits") * 1000,
        }))
    }

    async fn list_targets(
        &self,
        request: Request<ListTargetsRequest>,
    ) -> Result<Response<ListTargetsResponse>, Status> {
        self.admit(&request)?;
        Ok(Response::new(ListTargetsResponse { targets: self.state().targets.clone() }))
    }

    async fn push_policy(
        &self,
        request: Request<PushPolicyRequest>,
    ) -> Result<Response<PushPolicyResponse>, Status> {
        self.admit(&request)?;
        let mut state = self.state();
        state.pushed.push(request.into_inner());
        Ok(Response::new(state.push_answer.clone()))
    }

    async fn current_policy(
        &self,
        request: Request<CurrentPolicyRequest>,
    ) -> Result<Response<CurrentPolicyResponse>, Status> {
        self.admit(&request)?;
        let archive = self.state().archive.clone();
        let version = hex::encode(Sha256::digest(&archive));
        Ok(Response::new(CurrentPolicyResponse { version, archive, ..CurrentPolicyResponse::default() }))
    }

    async fn list_proposals(
        &self,
        request: Request<ListProposalsRequest>,
    ) -> Result<Response<ListProposalsResponse>, Status> {
        self.admit(&request)?;
        Ok(Response::new(ListProposalsResponse { proposals: self.state().proposals.clone() }))
    }

    async fn settle_proposal(
        &self,
        request: Request<SettleProposalRequest>,
    ) -> Result<Response<PushPolicyResponse>, Status> {
        self.admit(&request)?;
        let mut state = self.state();
        let request = request.into_inner();
        let answer = PushPolicyResponse { version: request.version.clone(), ..state.push_answer.clone() };
        state.settled.push(request);
        Ok(Response::new(answer))
    }

    async fn list_policies(
        &self,
        request: Request<ListPoliciesRequest>,
    ) -> Result<Response<ListPoliciesResponse>, Status> {
        self.admit(&request)?;
        Ok(Response::new(self.state().policies.clone()))
    }

    async fn roll_back_policy(
        &self,
        request: Request<RollBackPolicyRequest>,
    ) -> Result<Response<PushPolicyResponse>, Status> {
        self.admit(&request)?;
        let mut state = self.state();
        state.rolled_back.push(request.into_inner());
        Ok(Response::new(state.push_answer.clone()))
    }

    async fn start_canary(
        &self,
        request: Request<StartCanaryRequest>,
    ) -> Result<Response<PushPolicyResponse>, Status> {
        self.admit(&request)?;
        let mut state = self.state();
        state.canaries.push(request.into_inner());
        Ok(Response::new(state.push_answer.clone()))
    }

    async fn end_canary(
        &self,
        request: Request<EndCanaryRequest>,
    ) -> Result<Response<PushPolicyResponse>, Status> {
        self.admit(&request)?;
        let mut state = self.state();
        state.canary_ends.push(request.into_inner());
        Ok(Response::new(state.push_answer.clone()))
    }

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        self.admit(&request)?;
        Ok(Response::new(ListSessionsResponse { sessions: self.state().sessions.clone() }))
    }

    async fn end_session(
        &self,
        request: Request<EndSessionRequest>,
    ) -> Result<Response<EndSessionResponse>, Status> {
        self.admit(&request)?;
        let id = request.into_inner().session_id;
        let known = self.state().sessions.iter().any(|session| session.session_id == id);
        if known {
            Ok(Response::new(EndSessionResponse {}))
        } else {
            Err(Status::not_found("no such session"))
        }
    }

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Entries>, Status> {
        self.admit(&request)?;
        let from = request.into_inner().from_index;
        Ok(Response::new(self.entries(|index| index >= from)))
    }

    async fn recording(&self, request: Request<RecordingRequest>) -> Result<Response<Chunks>, Status> {
        self.admit(&request)?;
        // Small pieces, so that lines and characters are cut.
        let chunks: Vec<Result<RecordingChunk, Status>> = self
            .state()
            .recording
            .chunks(7)
            .map(|data| Ok(RecordingChunk { data: data.to_vec().into() }))
            .collect();
        Ok(Response::new(tokio_stream::iter(chunks)))
    }

    async fn log(&self, request: Request<LogRequest>) -> Result<Response<Entries>, Status> {
        self.admit(&request)?;
        let LogRequest { from_index, to_index } = request.into_inner();
        Ok(Response::new(self.entries(|index| index >= from_index && index < to_index)))
    }

    async fn checkpoint(
        &self,
        request: Request<CheckpointRequest>,
    ) -> Result<Response<CheckpointResponse>, Status> {
        self.admit(&request)?;
        let signer = self.signer();
        let mut frontier = Frontier::new();
        let state = self.state();
        let signed = usize::try_from(state.signed).expect("fits");
        for record in &state.records[..signed] {
            frontier.push(leaf_hash(record));
        }
        let checkpoint =
            Checkpoint { origin: "gateway.test".to_owned(), size: state.signed, root: frontier.root() };
        let note = checkpoint.sign(&signer).expect("signed");
        Ok(Response::new(CheckpointResponse { note, log_key: signer.verifier().to_string() }))
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        self.admit(&request)?;
        Ok(Response::new(CreateJoinTokenResponse {
            token: "join-me".to_owned(),
            expires_at_ms: 1_795_352_934_123,
            ca_sha256: self.ca_sha256.clone(),
        }))
    }

    async fn revoke_sensor(
        &self,
        request: Request<RevokeSensorRequest>,
    ) -> Result<Response<RevokeSensorResponse>, Status> {
        self.admit(&request)?;
        Err(Status::not_found("no sensor of that name"))
    }
}
