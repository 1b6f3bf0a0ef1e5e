//! Orders of policy: whether one is the gateway's, meant for this host, newer than what is here, and about the bundle that
//! came with it.

use sallyport_contract::v1::PolicyBundle;
use sallyport_evidence::note::Verifier;
use sallyport_evidence::order::{OrderError, Scope};
use sallyport_evidence::{PolicyOrder, Statement};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::MAX_ARCHIVE;

/// Whose orders this host takes.
#[derive(Clone, Debug)]
pub struct Trust {
    /// This host's name, as the gateway knows it.
    pub host: String,
    /// What the gateway signs orders with; none: not known yet.
    pub key: Option<Verifier>,
    /// Keys of authors, one of which must have signed each version that comes; none: the gateway's word is enough.
    pub signers: Vec<Verifier>,
}

/// An order that was accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Its number.
    pub serial: u64,
    /// The bundle's hash.
    pub version: String,
    /// How many of a thousand sessions; all of them, if it is no canary's.
    pub share: u16,
    /// The signed order; empty: taken over from a sensor that knew none.
    pub statement: String,
    /// What authors signed.
    pub signatures: Vec<String>,
}

/// What this host has accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// For everybody whom no canary covers.
    pub stable: Option<Accepted>,
    /// For some sessions.
    pub canary: Option<Accepted>,
}

/// An order is refused; nothing changes.
#[derive(Debug, thiserror::Error)]
pub enum OrderRefusal {
    /// Nothing to verify with.
    #[error(
        "this host has no key to verify the gateway's orders with; it asks for one by renewing its certificate (a gateway that gives none is too old for this sensor)"
    )]
    NoKey,
    /// Not the gateway's.
    #[error("it is not an order of this host's gateway")]
    Forged(#[from] OrderError),
    /// The order is about something else.
    #[error(
        "the signed order is for policy {ordered:.12} with serial {serial}, another one than it was sent with"
    )]
    OtherOrder {
        /// What was signed.
        ordered: String,
        /// Its number.
        serial: u64,
    },
    /// Damaged or forged on the way.
    #[error("the bundle does not have the version it is sent as ({announced:.12}, but it is {actual:.12})")]
    Version {
        /// As announced.
        announced: String,
        /// As computed.
        actual: String,
    },
    /// Too large.
    #[error("the bundle has {0} bytes, the limit is {MAX_ARCHIVE}")]
    TooLarge(usize),
    /// For somebody else.
    #[error("the order is for {0}, another host")]
    OtherHost(String),
    /// Replayed, or a gateway from a backup.
    #[error(
        "order {serial} is not newer than {has}, which this host has: it was replayed, or the gateway was restored from a backup (then push once more until the numbers are higher, or join this host again with `--force`)"
    )]
    Older {
        /// The order's number.
        serial: u64,
        /// The newest that counts here.
        has: u64,
    },
    /// No author who is believed here has signed it.
    #[error(
        "policy {version:.12} came without a good signature of the keys in `policy_signers` of this host's configuration ({problem})"
    )]
    Unsigned {
        /// The version.
        version: String,
        /// What was wrong with those that came.
        problem: String,
    },
    /// A canary has nothing beside it.
    #[error("a canary needs a policy that is in force for the other sessions, and this host has none")]
    NoStable,
}

/// What an order that is the gateway's means here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it was accepted before.
    Known,
    /// It takes effect.
    New(PolicyOrder),
}

impl Trust {
    /// Decides about an order. The bundle's content is not looked at, except for its hash.
    ///
    /// # Errors
    /// It is refused.
    pub fn decide(&self, bundle: &PolicyBundle, held: &Held) -> Result<Step, OrderRefusal> {
        if bundle.archive.len() > MAX_ARCHIVE {
            return Err(OrderRefusal::TooLarge(bundle.archive.len()));
        }
        let key = self.key.as_ref().ok_or(OrderRefusal::NoKey)?;
        let order = PolicyOrder::open(&bundle.statement, key)?;
        if order.version != bundle.version || order.serial != bundle.serial {
            return Err(OrderRefusal::OtherOrder { ordered: order.version, serial: order.serial });
        }
        if let Scope::Canary { host, .. } = &order.scope
            && *host != self.host
        {
            return Err(OrderRefusal::OtherHost(host.clone()));
        }
        if held.is_known(&order) {
            return Ok(Step::Known);
        }
        let has = held.newest_for(&order.scope);
        if order.serial <= has {
            return Err(OrderRefusal::Older { serial: order.serial, has });
        }
        if order.scope != Scope::All && held.stable.is_none() {
            return Err(OrderRefusal::NoStable);
        }
        let actual = hex::encode(Sha256::digest(&bundle.archive));
        if actual != bundle.version {
            return Err(OrderRefusal::Version { announced: bundle.version.clone(), actual });
        }
        self.is_signed(bundle)?;
        Ok(Step::New(order))
    }

    /// Whether an author who is believed here has signed the version. When, and for which gateway, is the gateway's
    /// concern: its order is newer than all before.
    fn is_signed(&self, bundle: &PolicyBundle) -> Result<(), OrderRefusal> {
        if self.signers.is_empty() {
            return Ok(());
        }
        let mut problem = "it has none".to_owned();
        for note in &bundle.signatures {
            match Statement::open(note, &self.signers) {
                Ok((statement, _)) if statement.version == bundle.version => return Ok(()),
                Ok((statement, _)) => problem = format!("the signature is on {:.12}", statement.version),
                Err(err) => problem = err.to_string(),
            }
        }
        Err(OrderRefusal::Unsigned { version: bundle.version.clone(), problem })
    }
}

impl Held {
    fn is_known(&self, order: &PolicyOrder) -> bool {
        let held = if order.scope == Scope::All { &self.stable } else { &self.canary };
        held.as_ref().is_some_and(|held| held.serial == order.serial && held.version == order.version)
    }

    /// The newest order that one for `scope` would replace.
    fn newest_for(&self, scope: &Scope) -> u64 {
        let serial = |held: &Option<Accepted>| held.as_ref().map_or(0, |held| held.serial);
        match scope {
            Scope::All => serial(&self.stable),
            Scope::Canary { .. } => serial(&self.stable).max(serial(&self.canary)),
        }
    }

    /// With an order accepted. One for everybody that is newer than the canary ends it.
    #[must_use]
    pub fn with(&self, accepted: Accepted, scope: &Scope) -> Self {
        match scope {
            Scope::All => {
                let canary = self.canary.clone().filter(|canary| canary.serial > accepted.serial);
                Self { stable: Some(accepted), canary }
            }
            Scope::Canary { .. } => Self { stable: self.stable.clone(), canary: Some(accepted) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sallyport_evidence::note::Signer;

    fn signer() -> Signer {
        Signer::new("gw/policy", &[9; 32]).expect("a signer")
    }

    fn trust() -> Trust {
        Trust { host: "web-1".into(), key: Some(signer().verifier().clone()), signers: Vec::new() }
    }

    fn canary(host: &str) -> Scope {
        Scope::Canary { host: host.into(), share: 100 }
    }

    fn bundle(serial: u64, archive: &'static [u8], scope: Scope) -> PolicyBundle {
        let version = hex::encode(Sha256::digest(archive));
        let order = PolicyOrder { gateway: "gw".into(), serial, version: version.clone(), time_ms: 0, scope };
        PolicyBundle {
            version,
            serial,
            archive: archive.into(),
            statement: order.sign(&signer()).expect("signed"),
            ..PolicyBundle::default()
        }
    }

    fn accept(held: &Held, bundle: &PolicyBundle) -> Held {
        match trust().decide(bundle, held) {
            Ok(Step::New(order)) => {
                let (serial, version) = (order.serial, order.version);
                held.with(Accepted { serial, version, ..Accepted::default() }, &order.scope)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_newer_orders_count() {
        let one = bundle(5, b"one", Scope::All);
        let held = accept(&Held::default(), &one);
        assert_eq!(trust().decide(&one, &held).expect("the same again"), Step::Known);
        let held = accept(&held, &bundle(7, b"two", Scope::All));
        // The first one, replayed; and another one under a number that was used.
        for replayed in [one, bundle(7, b"three", Scope::All), bundle(6, b"four", Scope::All)] {
            let refused = trust().decide(&replayed, &held);
            assert!(matches!(refused, Err(OrderRefusal::Older { has: 7, .. })), "{refused:?}");
        }
        // The first version again, as a new order.
        accept(&held, &bundle(8, b"one", Scope::All));
    }

    #[test]
    fn a_canary_stands_beside_and_ends_with_a_newer_order() {
        let tried = bundle(6, b"two", canary("web-1"));
        let refused = trust().decide(&tried, &Held::default());
        assert!(matches!(refused, Err(OrderRefusal::NoStable)), "{refused:?}");
        let stable = bundle(5, b"one", Scope::All);
        let held = accept(&accept(&Held::default(), &stable), &tried);
        assert_eq!(held.canary.as_ref().expect("a canary").serial, 6);
        // After a reconnection both come again, and neither disturbs the other.
        for again in [&stable, &tried] {
            assert_eq!(trust().decide(again, &held).expect("known"), Step::Known);
        }
        let held = accept(&held, &bundle(7, b"one", Scope::All));
        assert!(held.canary.is_none());
        let refused = trust().decide(&tried, &held);
        assert!(matches!(refused, Err(OrderRefusal::Older { serial: 6, has: 7 })), "{refused:?}");
    }

    #[test]
    fn an_author_must_have_signed_where_that_is_wanted() {
        let author = |name: &str, seed: u8| Signer::new(name, &[seed; 32]).expect("a signer");
        let strict = Trust { signers: vec![author("release", 1).verifier().clone()], ..trust() };
        let plain = bundle(5, b"one", Scope::All);
        let signed = |version: &str, by: &Signer| {
            let (gateway, version) = ("gw".to_owned(), version.to_owned());
            let statement = Statement { gateway, version, commit: String::new(), created_ms: 1 };
            statement.sign(by).expect("signed")
        };
        let with = |notes: Vec<String>| PolicyBundle { signatures: notes, ..plain.clone() };
        let good = signed(&plain.version, &author("release", 1));
        let held = Held::default();
        assert!(matches!(strict.decide(&with(vec![good.clone()]), &held), Ok(Step::New(_))));
        let stranger = signed(&plain.version, &author("other", 2));
        assert!(matches!(
            strict.decide(&with(vec![stranger.clone(), good.clone()]), &held),
            Ok(Step::New(_))
        ));
        for (notes, because) in [
            (vec![], "it has none"),
            (vec![stranger], "none of the keys"),
            (vec![signed(&plain.version, &author("release", 2))], "none of the keys"),
            (vec![signed(&"0".repeat(64), &author("release", 1))], "the signature is on 000000000000"),
            (vec![good.replace("created-ms: 1", "created-ms: 2")], "is false"),
            (vec!["junk".to_owned()], "not a signed note"),
        ] {
            let refused = strict.decide(&with(notes), &held).expect_err("refused");
            assert!(matches!(refused, OrderRefusal::Unsigned { .. }), "{refused}");
            assert!(refused.to_string().contains(because), "{because}: {refused}");
        }
        assert!(matches!(trust().decide(&plain, &held), Ok(Step::New(_))), "nobody asked for it");
    }

    #[test]
    fn what_is_not_signed_for_this_is_refused() {
        let held = Held::default();
        let good = bundle(5, b"one", Scope::All);
        let refuse = |bundle: PolicyBundle, trust: &Trust| trust.decide(&bundle, &held).expect_err("refused");
        let unsigned = PolicyBundle { statement: String::new(), ..good.clone() };
        assert!(matches!(refuse(unsigned, &trust()), OrderRefusal::Forged(_)));
        let none = Trust { key: None, ..trust() };
        assert!(matches!(refuse(good.clone(), &none), OrderRefusal::NoKey));
        let other = Signer::new("gw/policy", &[8; 32]).expect("a signer");
        let other = Trust { key: Some(other.verifier().clone()), ..trust() };
        assert!(matches!(refuse(good.clone(), &other), OrderRefusal::Forged(_)));
        // Another bundle with the statement of this one; the right name with other content; another number.
        let mixed = PolicyBundle { statement: good.statement.clone(), ..bundle(5, b"two", Scope::All) };
        assert!(matches!(refuse(mixed, &trust()), OrderRefusal::OtherOrder { .. }));
        let damaged = PolicyBundle { archive: b"onE"[..].into(), ..good.clone() };
        assert!(matches!(refuse(damaged, &trust()), OrderRefusal::Version { .. }));
        let renumbered = PolicyBundle { serial: 6, ..good };
        assert!(matches!(refuse(renumbered, &trust()), OrderRefusal::OtherOrder { serial: 5, .. }));
        let elsewhere = refuse(bundle(5, b"one", canary("web-2")), &trust());
        assert!(matches!(elsewhere, OrderRefusal::OtherHost(_)), "{elsewhere}");
    }
}
