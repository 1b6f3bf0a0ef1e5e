//! Signed orders of policy, from a gateway to its sensors.
//!
//! A C2SP signed note that names one version by its hash, counts (`serial`), and says whom it is for, so that a sensor
//! can tell a new order from one that is replayed, meant for another host, or made by somebody else.

use crate::note::{NoteError, Signer, Verifier};
use sha2::{Digest, Sha256};

/// First line of an order.
const ORDER: &str = "sallyport policy order v1";
/// Shares are counted in these.
pub const WHOLE: u16 = 1000;
/// What a gateway's key for orders has behind the gateway's name.
pub const KEY_SUFFIX: &str = "/policy";

/// A gateway's order: this version, for these sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyOrder {
    /// The gateway's name.
    pub gateway: String,
    /// Counts the gateway's changes of policy: never the same for two of them, never less.
    pub serial: u64,
    /// Hex SHA-256 of the bundle's canonical form.
    pub version: String,
    /// When it was decided, milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// For whom.
    pub scope: Scope,
}

/// For whom an order is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every host, every session. Ends a canary.
    All,
    /// One host of a canary, beside the version that is in force.
    Canary {
        /// The host.
        host: String,
        /// How many of a thousand sessions there.
        share: u16,
    },
}

/// Why an order is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// The note.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The text is no order.
    #[error("the signed text is not an order of policy")]
    Malformed,
    /// Signed by a key of another gateway.
    #[error("it is an order of `{0}`, another gateway")]
    Gateway(String),
}

impl PolicyOrder {
    /// The note's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let Self { gateway, serial, version, time_ms, scope } = self;
        let scope = match scope {
            Scope::All => "all".to_owned(),
            Scope::Canary { host, share } => format!("canary {share} {host}"),
        };
        format!(
            "{ORDER}\ngateway {gateway}\nserial {serial}\nversion {version}\ntime_ms {time_ms}\nscope {scope}\n"
        )
    }

    /// Parses the text: one order has one text.
    ///
    /// # Errors
    /// It is not an order.
    pub fn parse(text: &str) -> Result<Self, OrderError> {
        let order = parse(text).ok_or(OrderError::Malformed)?;
        // No signs, leading zeros or further lines.
        if order.to_text() == text { Ok(order) } else { Err(OrderError::Malformed) }
    }

    /// Signs it.
    ///
    /// # Errors
    /// A name in it cannot stand in a note.
    pub fn sign(&self, signer: &Signer) -> Result<String, NoteError> {
        signer.sign(&self.to_text())
    }

    /// Opens an order of the gateway that `key` belongs to.
    ///
    /// # Errors
    /// Not signed by `key`, no order, or of another gateway.
    pub fn open(note: &str, key: &Verifier) -> Result<Self, OrderError> {
        let order = Self::parse(key.open(note)?)?;
        if key.name().strip_suffix(KEY_SUFFIX) == Some(order.gateway.as_str()) {
            Ok(order)
        } else {
            Err(OrderError::Gateway(order.gateway))
        }
    }
}

impl Scope {
    /// Whether a session is judged by this version. The same on the gateway and on the host, and again after a restart:
    /// it depends on the version and the session's id alone.
    #[must_use]
    pub fn covers(&self, version: &str, session: &str) -> bool {
        match self {
            Self::All => true,
            Self::Canary { share, .. } => in_share(*share, version, session),
        }
    }
}

/// Whether a session is among `share` of a thousand.
#[must_use]
pub fn in_share(share: u16, version: &str, session: &str) -> bool {
    let digest = Sha256::new().chain_update(version).chain_update("\n").chain_update(session).finalize();
    let first = digest.first_chunk::<8>().map_or(0, |first| u64::from_be_bytes(*first));
    first % u64::from(WHOLE) < u64::from(share)
}

fn parse(text: &str) -> Option<PolicyOrder> {
    let mut lines = text.lines();
    if lines.next() != Some(ORDER) {
        return None;
    }
    let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
    let gateway = field("gateway")?;
    let serial = field("serial")?.parse().ok()?;
    let version = field("version")?;
    let time_ms = field("time_ms")?.parse().ok()?;
    let scope = match field("scope")?.split(' ').collect::<Vec<_>>()[..] {
        ["all"] => Scope::All,
        ["canary", share, host] => Scope::Canary { host: host.to_owned(), share: share.parse().ok()? },
        _ => return None,
    };
    let shared = !matches!(scope, Scope::Canary { share, .. } if share == 0 || share > WHOLE);
    let hashed = version.len() == 64 && version.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (shared && hashed && serial > 0).then_some(PolicyOrder { gateway, serial, version, time_ms, scope })
}

/// Fuzz entry: any bytes are refused or are the one text of an order.
pub fn fuzz_order(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(order) = PolicyOrder::parse(text)
    {
        assert_eq!(order.to_text(), text, "two texts for one order");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(scope: Scope) -> PolicyOrder {
        PolicyOrder {
            gateway: "gateway.example.org".into(),
            serial: 12,
            version: "ab".repeat(32),
            time_ms: 1_700_000_000_000,
            scope,
        }
    }

    fn signer(name: &str) -> Signer {
        Signer::new(name, &[3; 32]).unwrap()
    }

    #[test]
    fn an_order_comes_back_and_others_are_refused() {
        let key = signer("gateway.example.org/policy");
        for scope in [Scope::All, Scope::Canary { host: "web-1".into(), share: 100 }] {
            let note = order(scope.clone()).sign(&key).unwrap();
            assert_eq!(PolicyOrder::open(&note, key.verifier()).unwrap(), order(scope));
        }
        let elsewhere = signer("elsewhere/policy");
        let foreign = order(Scope::All).sign(&elsewhere).unwrap();
        let gateway = OrderError::Gateway("gateway.example.org".into());
        assert_eq!(PolicyOrder::open(&foreign, elsewhere.verifier()), Err(gateway));
        let unsigned = PolicyOrder::open(&foreign, key.verifier());
        assert!(matches!(unsigned, Err(OrderError::Note(NoteError::Unsigned(_)))), "{unsigned:?}");
        // A key of the same gateway for something else, such as its log.
        let log = signer("gateway.example.org");
        let note = order(Scope::All).sign(&log).unwrap();
        assert!(PolicyOrder::open(&note, log.verifier()).is_err());
    }

    #[test]
    fn one_order_has_one_text() {
        let good = order(Scope::All).to_text();
        assert!(PolicyOrder::parse(&good).is_ok());
        for (from, to) in [
            ("serial 12", "serial 012"),
            ("serial 12", "serial +12"),
            ("serial 12", "serial 0"),
            ("scope all", "scope all "),
            ("scope all", "scope all\nmore"),
            ("scope all", "scope canary 0 web-1"),
            ("scope all", "scope canary 1001 web-1"),
            ("abab", "ABAB"),
            ("abab", "ab"),
            ("order v1", "order v2"),
            ("gateway ", "gateway"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert_eq!(PolicyOrder::parse(&bad), Err(OrderError::Malformed), "{bad}");
        }
    }

    #[test]
    fn a_share_is_a_share_and_does_not_move() {
        let version = "ab".repeat(32);
        let count =
            |share| (0..10_000).filter(|n| in_share(share, &version, &format!("session-{n}"))).count();
        assert_eq!((count(0), count(WHOLE)), (0, 10_000));
        assert!((800..1200).contains(&count(100)), "{}", count(100));
        // Whoever is in a small share is in a larger one.
        for n in 0..1000 {
            let session = format!("session-{n}");
            assert!(!in_share(100, &version, &session) || in_share(200, &version, &session));
        }
        // Another version has other sessions.
        let of =
            |version: &str| (0..100).filter(|n| in_share(100, version, &n.to_string())).collect::<Vec<_>>();
        assert_ne!(of(&version), of(&"cd".repeat(32)));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(sallyport policy order v1\n)?[ -~\n]{0,200}") {
            fuzz_order(text.as_bytes());
        }
    }
}
