//! The grammar of what brings a change of policy: signing a version, pushing as a CI job, approving what others proposed.

use std::path::PathBuf;

use clap::{Args, ValueHint};

/// `policy archive`.
#[derive(Debug, Args)]
pub struct Archive {
    /// The bundle's folder
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// The file to write
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// `policy keygen`.
#[derive(Debug, Args)]
pub struct Keygen {
    /// Name of the key: what `context.signed_by` in policies holds
    pub name: String,
    /// The file for the private key; it must not be there yet, and only you may read it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub out: PathBuf,
}

/// `policy sign`.
#[derive(Debug, Args)]
pub struct Sign {
    /// The bundle's folder
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// File with the private key
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "key_env", conflicts_with = "key_env")]
    pub key: Option<PathBuf>,
    /// Environment variable with the private key, for CI
    #[arg(long, value_name = "VARIABLE")]
    pub key_env: Option<String>,
    /// Name of the gateway that the version is meant for; no other one takes it
    #[arg(long = "for", value_name = "GATEWAY")]
    pub gateway: String,
    /// The file to write; one with a signature of the same statement gets another one [default: standard output]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub out: Option<PathBuf>,
}

/// `policy verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// The bundle's folder
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Files with signed statements
    #[arg(long, value_name = "FILE", required = true, value_hint = ValueHint::FilePath)]
    pub signature: Vec<PathBuf>,
    /// Verifier keys that are believed, as `policy keygen` printed them
    #[arg(long, value_name = "KEY", required = true)]
    pub key: Vec<String>,
    /// Name of the gateway that the version must be meant for
    #[arg(long = "for", value_name = "GATEWAY")]
    pub gateway: Option<String>,
}

/// What a push brings beside the bundle, and who pushes.
#[derive(Debug, Default, Args)]
pub struct Bring {
    /// Files with signed statements [default: `bundle.sig` in the bundle's folder, if it is there]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub signature: Vec<PathBuf>,
    /// Push as a CI job: environment variable with its OpenID token [default: SALLYPORT_ID_TOKEN, or on GitHub a token that is asked for]
    #[arg(long, value_name = "VARIABLE", conflicts_with = "token_file")]
    pub token_env: Option<String>,
    /// Push as a CI job: file with its OpenID token
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,
    /// On GitHub: whom the token is asked for, `audience` in the gateway's configuration [default: the gateway's address]
    #[arg(long, value_name = "TEXT")]
    pub audience: Option<String>,
    /// SHA-256 of the gateway's CA certificate, where nobody has signed in before
    #[arg(long, env = "SALLYPORT_CA_SHA256", value_name = "HEX", conflicts_with = "ca_file")]
    pub ca_sha256: Option<String>,
}

/// `policy approve` and `policy reject`.
#[derive(Debug, Args)]
pub struct Settle {
    /// The proposed version, or as many of its first digits as tell it from others
    pub version: String,
    /// Why; kept on the record
    #[arg(short, long, default_value = "", value_name = "TEXT")]
    pub reason: String,
}
