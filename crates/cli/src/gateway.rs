//! The connection to the gateway: TLS against the pinned CA, the bearer token, sentences for its errors.

use std::{error::Error, fs, io, time::Duration};

use sallyport_contract::v1::console_client::ConsoleClient;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{
    args::{Bring, Global},
    clock,
    failure::Failure,
    job,
    out::Out,
    profile::{self, Address, Folders, Profile},
    trust,
};

/// Larger answers than this are refused: a policy archive or a list of sessions is well below.
const LARGEST_MESSAGE: usize = 64 << 20;

/// What every command gets.
#[derive(Clone, Debug)]
pub struct Context {
    /// Options for all commands.
    pub global: Global,
    /// The person's folders.
    pub folders: Folders,
    /// Where to print.
    pub out: Out,
}

/// The console service as a signed-in person.
pub type Console = ConsoleClient<InterceptedService<Channel, Bearer>>;

/// Adds the token to each request.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

impl Context {
    /// The gateway meant: `--gateway`, `SALLYPORT_GATEWAY`, or the one signed in to last.
    ///
    /// # Errors
    /// None is known, or the address is wrong.
    pub fn gateway(&self) -> Result<Address, Failure> {
        if let Some(text) = &self.global.gateway {
            return Address::parse(text).map_err(|err| Failure::usage(err.to_string()));
        }
        let current = profile::current(&self.folders)
            .map_err(|err| Failure::failed("cannot read the saved profile").because(&err))?;
        current.ok_or_else(|| {
            Failure::not_signed_in("no gateway is known")
                .next("sign in with `sallyport login --gateway https://HOST:PORT --ca-sha256 FINGERPRINT`")
        })
    }

    /// What is saved about a gateway, signed in or not.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn saved(&self, gateway: &Address) -> Result<Option<Profile>, Failure> {
        profile::load(&self.folders, gateway)
            .map_err(|err| Failure::failed("cannot read the saved profile").because(&err))
    }

    /// The sign-in in force.
    ///
    /// # Errors
    /// There is none, or it is over.
    pub fn profile(&self) -> Result<Profile, Failure> {
        let gateway = self.gateway()?;
        let profile = self.saved(&gateway)?.filter(|profile| !profile.token.is_empty());
        let mut profile =
            profile.ok_or_else(|| Failure::not_signed_in(format!("not signed in to {gateway}")))?;
        if profile.expires_at_ms > 0 && clock::until_ms(profile.expires_at_ms).is_none() {
            let when = clock::minute_ms(profile.expires_at_ms);
            return Err(Failure::not_signed_in(format!("your sign-in to {gateway} ended at {when}")));
        }
        if let Some(pem) = self.ca_file()? {
            profile.ca_pem = pem;
        }
        Ok(profile)
    }

    /// The content of `--ca-file`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn ca_file(&self) -> Result<Option<String>, Failure> {
        let Some(path) = &self.global.ca_file else { return Ok(None) };
        let pem = fs::read_to_string(path).map_err(|err| {
            Failure::usage(format!("cannot read the CA file `{}`", path.display())).because(&err)
        })?;
        if !pem.contains("-----BEGIN CERTIFICATE-----") {
            return Err(Failure::usage(format!("`{}` holds no PEM certificate", path.display())));
        }
        Ok(Some(pem))
    }

    /// The console as the signed-in person.
    ///
    /// # Errors
    /// Not signed in, or the gateway cannot be reached.
    pub async fn console(&self) -> Result<(Console, Profile), Failure> {
        let profile = self.profile()?;
        let channel = connect(&profile.gateway, &profile.ca_pem).await?;
        Ok((signed_in(channel, &profile.token)?, profile))
    }
}

impl Context {
    /// The console for a push: as the CI job that we are, or else as the signed-in person.
    ///
    /// # Errors
    /// Neither, or the gateway cannot be reached.
    pub async fn console_to_push(&self, bring: &Bring) -> Result<Console, Failure> {
        let explained = |failure: Failure| match job::advice() {
            Some(advice) => failure.next(advice),
            None => failure,
        };
        let gateway = self.gateway().map_err(|failure| match job::advice() {
            Some(_) => failure.next("name the gateway: --gateway https://HOST:PORT, or SALLYPORT_GATEWAY"),
            None => failure,
        })?;
        let Some(token) = job::token(bring, &gateway).await? else {
            return self.console().await.map(|(console, _)| console).map_err(explained);
        };
        let ca_pem = self.ca_for_job(&gateway, bring.ca_sha256.as_deref()).await?;
        signed_in(connect(&gateway, &ca_pem).await?, &token)
    }

    /// Whom a CI job trusts: the CA that is given as a file, pinned by fingerprint, or known from a sign-in.
    async fn ca_for_job(&self, gateway: &Address, pin: Option<&str>) -> Result<String, Failure> {
        if let Some(pem) = self.ca_file()? {
            return Ok(pem);
        }
        if let Some(pin) = pin {
            let pin = trust::parse_fingerprint(pin)
                .map_err(|err| Failure::usage("--ca-sha256 is not a fingerprint").because(&err))?;
            let presented = trust::presented_ca(gateway, Some(pin)).await;
            return presented.map(|ca| ca.pem()).map_err(|err| {
                Failure::unreachable(format!("the gateway {gateway} cannot be told from others"))
                    .because(&err)
                    .next("compare the fingerprint with the one that the gateway's operator gave you, and check the network")
            });
        }
        match self.saved(gateway)? {
            Some(profile) => Ok(profile.ca_pem),
            None => Err(Failure::usage(format!("it is not known which CA {gateway} must have")).next(
                "set SALLYPORT_CA_SHA256 or pass --ca-sha256 FINGERPRINT (or --ca-file), as the gateway's operator gives it",
            )),
        }
    }
}

/// The console with a token.
///
/// # Errors
/// The token has characters that no header takes.
pub fn signed_in(channel: Channel, token: &str) -> Result<Console, Failure> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .map_err(|_| Failure::not_signed_in("the saved token is damaged"))?;
    value.set_sensitive(true);
    Ok(ConsoleClient::with_interceptor(channel, Bearer(value))
        .max_decoding_message_size(LARGEST_MESSAGE)
        .max_encoding_message_size(LARGEST_MESSAGE))
}

/// A connection that trusts that CA alone.
///
/// # Errors
/// It cannot be made, or the other side is not the gateway.
pub async fn connect(gateway: &Address, ca_pem: &str) -> Result<Channel, Failure> {
    let tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca_pem)).domain_name(gateway.host());
    let endpoint = Endpoint::from_shared(gateway.to_string())
        .and_then(|endpoint| endpoint.tls_config(tls))
        .map_err(|err| Failure::failed(format!("cannot set up TLS to {gateway}")).because(&err))?
        .user_agent(concat!("sallyport/", env!("CARGO_PKG_VERSION")))
        .map_err(|err| Failure::failed("cannot set up the connection").because(&err))?
        .connect_timeout(Duration::from_secs(15))
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    endpoint.connect().await.map_err(|err| explain(gateway, &err))
}

/// Why there is no connection: the innermost cause that says something.
fn explain(gateway: &Address, err: &tonic::transport::Error) -> Failure {
    let mut cause: Option<&(dyn Error + 'static)> = Some(err);
    let mut innermost = String::new();
    let mut not_ours = false;
    while let Some(error) = cause {
        innermost = error.to_string();
        let tls = error.downcast_ref::<rustls::Error>().or_else(|| {
            // tokio-rustls hands its errors on inside an io::Error, whose `source` skips them.
            error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
        });
        if let Some(tls) = tls {
            innermost = tls.to_string();
            not_ours = matches!(tls, rustls::Error::InvalidCertificate(_));
        }
        cause = error.source();
    }
    if not_ours {
        return Failure::unreachable(format!(
            "whoever answers at {gateway} is not the gateway that was pinned"
        ))
        .why(innermost)
        .next(
            "if the gateway's CA was replaced, ask its operator for the new fingerprint and sign in with \
                 `sallyport login --ca-sha256 FINGERPRINT`",
        );
    }
    Failure::unreachable(format!("cannot reach the gateway {gateway}"))
        .why(innermost)
        .next("check the address and the network, and that the gateway runs")
}
