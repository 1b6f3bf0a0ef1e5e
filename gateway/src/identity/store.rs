//! What sign-ins leave behind: public keys bound to identities, and issued SSH certificates.
//!
//! A binding keeps the groups of the sign-in that made it until it ends: groups taken away at the provider take
//! effect at the next sign-in, at the latest after `ssh.key_binding`. Revoking takes effect at once, for new log-ins.

use crate::state::{State, StateError};
use rusqlite::{Connection, OptionalExtension, Row, params};
use sallyport_evidence::record::Identity;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Creates what is missing.
///
/// # Errors
/// The database refuses.
pub fn migrate(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "create table if not exists key_bindings (
            fingerprint text primary key,
            identity text not null,
            client text not null,
            bound_ms integer not null,
            expires_ms integer not null
        ) strict;
        create table if not exists ssh_certificates (
            serial integer primary key autoincrement,
            fingerprint text not null,
            identity text not null,
            issued_ms integer not null,
            expires_ms integer not null,
            revoked_ms integer
        ) strict;
        create index if not exists ssh_certificates_key on ssh_certificates (fingerprint);",
    )
}

/// Access to the tables. Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    state: State,
}

/// What is known of a public key.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyStanding {
    /// Bound to this identity now.
    Bound(Box<Identity>),
    /// Not bound, but a live certificate was issued for it: worth asking for a signature.
    Certified,
    /// Nothing.
    Unknown,
}

/// One binding, for lists.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyBinding {
    /// `SHA256:…`.
    pub fingerprint: String,
    /// Whom it stands for.
    pub identity: Identity,
    /// Address of the client that bound it.
    pub client: String,
    /// When it ends.
    pub expires_at: SystemTime,
}

impl Credentials {
    /// Over the state database.
    #[must_use]
    pub fn new(state: State) -> Self {
        Self { state }
    }

    /// Binds a key, replacing what it was bound to.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn bind(
        &self,
        fingerprint: &str,
        identity: &Identity,
        client: &str,
        lifetime: Duration,
    ) -> Result<(), StateError> {
        let (fingerprint, client) = (fingerprint.to_owned(), client.to_owned());
        let (identity, now) = (to_json(identity), now_ms());
        let ends = now.saturating_add(millis(lifetime));
        self.state
            .call(move |db| {
                // Ended bindings are of no use to anybody.
                db.execute("delete from key_bindings where expires_ms <= ?1", [now])?;
                db.execute(
                    "insert or replace into key_bindings values (?1, ?2, ?3, ?4, ?5)",
                    params![fingerprint, identity, client, now, ends],
                )
            })
            .await
            .map(drop)
    }

    /// What is known of a key now.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn standing(&self, fingerprint: &str) -> Result<KeyStanding, StateError> {
        let (fingerprint, now) = (fingerprint.to_owned(), now_ms());
        self.state
            .call(move |db| {
                let bound = db
                    .query_row(
                        "select identity from key_bindings where fingerprint = ?1 and expires_ms > ?2",
                        params![fingerprint, now],
                        |row| identity_at(row, 0),
                    )
                    .optional()?;
                if let Some(identity) = bound {
                    return Ok(KeyStanding::Bound(Box::new(identity)));
                }
                let certified: bool = db.query_row(
                    "select exists (select 1 from ssh_certificates
                     where fingerprint = ?1 and expires_ms > ?2 and revoked_ms is null)",
                    params![fingerprint, now],
                    |row| row.get(0),
                )?;
                Ok(if certified { KeyStanding::Certified } else { KeyStanding::Unknown })
            })
            .await
    }

    /// Live bindings, of one person or of all.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn bindings(&self, user: Option<&str>) -> Result<Vec<KeyBinding>, StateError> {
        let (user, now) = (user.map(str::to_owned), now_ms());
        self.state
            .call(move |db| {
                let mut statement = db.prepare(
                    "select fingerprint, identity, client, expires_ms from key_bindings
                     where expires_ms > ?1 order by bound_ms",
                )?;
                let rows = statement.query_map([now], |row| {
                    Ok(KeyBinding {
                        fingerprint: row.get(0)?,
                        identity: identity_at(row, 1)?,
                        client: row.get(2)?,
                        expires_at: at_ms(row.get(3)?),
                    })
                })?;
                let bindings: Vec<_> = rows.collect::<rusqlite::Result<_>>()?;
                Ok(bindings
                    .into_iter()
                    .filter(|binding| user.as_ref().is_none_or(|user| binding.identity.user == *user))
                    .collect())
            })
            .await
    }

    /// Ends a binding; false if there was none.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn revoke_binding(&self, fingerprint: &str) -> Result<bool, StateError> {
        let fingerprint = fingerprint.to_owned();
        self.state
            .call(move |db| db.execute("delete from key_bindings where fingerprint = ?1", [fingerprint]))
            .await
            .map(|n| n > 0)
    }

    /// Ends everything that lets a person in without a sign-in: bindings and certificates. Returns how many.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn revoke_all_of(&self, user: &str) -> Result<usize, StateError> {
        let (user, now) = (user.to_owned(), now_ms());
        self.state
            .call(move |db| {
                let transaction = db.transaction()?;
                let n = transaction
                    .execute("delete from key_bindings where json_extract(identity, '$.user') = ?1", [&user])?
                    + transaction.execute(
                        "update ssh_certificates set revoked_ms = ?2
                         where json_extract(identity, '$.user') = ?1 and revoked_ms is null and expires_ms > ?2",
                        params![user, now],
                    )?;
                transaction.commit()?;
                Ok(n)
            })
            .await
    }

    /// Takes a serial number for a certificate about to be signed and remembers whom it is for.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn certificate_serial(
        &self,
        fingerprint: &str,
        identity: &Identity,
        expires_at: SystemTime,
    ) -> Result<u64, StateError> {
        let (fingerprint, identity) = (fingerprint.to_owned(), to_json(identity));
        let (now, ends) = (now_ms(), to_ms(expires_at));
        self.state
            .call(move |db| {
                db.execute(
                    "insert into ssh_certificates (fingerprint, identity, issued_ms, expires_ms)
                     values (?1, ?2, ?3, ?4)",
                    params![fingerprint, identity, now, ends],
                )?;
                Ok(db.last_insert_rowid().unsigned_abs())
            })
            .await
    }

    /// Whom a certificate is for, if it was issued for this key and is neither ended nor revoked.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn certificate(&self, serial: u64, fingerprint: &str) -> Result<Option<Identity>, StateError> {
        let Ok(serial) = i64::try_from(serial) else { return Ok(None) };
        let (fingerprint, now) = (fingerprint.to_owned(), now_ms());
        self.state
            .call(move |db| {
                db.query_row(
                    "select identity from ssh_certificates
                     where serial = ?1 and fingerprint = ?2 and expires_ms > ?3 and revoked_ms is null",
                    params![serial, fingerprint, now],
                    |row| identity_at(row, 0),
                )
                .optional()
            })
            .await
    }

    /// Revokes a certificate; false if there is no live one of that serial.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn revoke_certificate(&self, serial: u64) -> Result<bool, StateError> {
        let Ok(serial) = i64::try_from(serial) else { return Ok(false) };
        let now = now_ms();
        self.state
            .call(move |db| {
                db.execute(
                    "update ssh_certificates set revoked_ms = ?2 where serial = ?1 and revoked_ms is null",
                    params![serial, now],
                )
            })
            .await
            .map(|n| n > 0)
    }
}

fn to_json(identity: &Identity) -> String {
    // A struct of strings always serialises.
    serde_json::to_string(identity).unwrap_or_default()
}

fn identity_at(row: &Row<'_>, column: usize) -> rusqlite::Result<Identity> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|err| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(err))
    })
}

fn now_ms() -> i64 {
    to_ms(SystemTime::now())
}

fn to_ms(at: SystemTime) -> i64 {
    millis(at.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn at_ms(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms.unsigned_abs())
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alice() -> Identity {
        Identity {
            user: "alice".into(),
            groups: vec!["ops".into()],
            kind: "human".into(),
            ..Identity::default()
        }
    }

    async fn credentials() -> (tempfile::TempDir, Credentials) {
        let dir = tempfile::tempdir().expect("temp dir");
        let state = State::open(&dir.path().join("state.db")).expect("opens");
        (dir, Credentials::new(state))
    }

    #[tokio::test]
    async fn a_binding_ends_by_itself_and_by_revocation() {
        let (_dir, credentials) = credentials().await;
        assert_eq!(credentials.standing("SHA256:a").await.expect("reads"), KeyStanding::Unknown);
        credentials.bind("SHA256:a", &alice(), "::1", Duration::from_secs(60)).await.expect("binds");
        assert_eq!(
            credentials.standing("SHA256:a").await.expect("reads"),
            KeyStanding::Bound(Box::new(alice()))
        );
        assert_eq!(credentials.bindings(Some("alice")).await.expect("lists").len(), 1);
        assert!(credentials.bindings(Some("bob")).await.expect("lists").is_empty());
        assert!(credentials.revoke_binding("SHA256:a").await.expect("revokes"));
        assert!(!credentials.revoke_binding("SHA256:a").await.expect("revokes"));
        assert_eq!(credentials.standing("SHA256:a").await.expect("reads"), KeyStanding::Unknown);
        credentials.bind("SHA256:b", &alice(), "::1", Duration::ZERO).await.expect("binds");
        assert_eq!(credentials.standing("SHA256:b").await.expect("reads"), KeyStanding::Unknown);
    }

    #[tokio::test]
    async fn a_certificate_restores_its_identity_until_revoked() {
        let (_dir, credentials) = credentials().await;
        let ends = SystemTime::now() + Duration::from_secs(60);
        let serial = credentials.certificate_serial("SHA256:a", &alice(), ends).await.expect("serial");
        let other = credentials.certificate_serial("SHA256:a", &alice(), ends).await.expect("serial");
        assert_ne!(serial, other);
        assert_eq!(credentials.standing("SHA256:a").await.expect("reads"), KeyStanding::Certified);
        assert_eq!(credentials.certificate(serial, "SHA256:a").await.expect("reads"), Some(alice()));
        assert_eq!(credentials.certificate(serial, "SHA256:b").await.expect("reads"), None);
        assert_eq!(credentials.certificate(u64::MAX, "SHA256:a").await.expect("reads"), None);
        assert!(credentials.revoke_certificate(serial).await.expect("revokes"));
        assert_eq!(credentials.certificate(serial, "SHA256:a").await.expect("reads"), None);
        assert_eq!(credentials.certificate(other, "SHA256:a").await.expect("reads"), Some(alice()));
        assert_eq!(credentials.revoke_all_of("alice").await.expect("revokes"), 1);
        assert_eq!(credentials.standing("SHA256:a").await.expect("reads"), KeyStanding::Unknown);
    }
}
