//! What is pending or granted: authorization codes, device codes, access tokens. In memory, bounded.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::tokens::{challenge_of, random_text, user_code};

/// RFC 8628 section 3.2.
pub(crate) const DEVICE_CODE_LIFE: Duration = Duration::from_secs(600);
const CODE_LIFE: Duration = Duration::from_secs(60);
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// More than any demo or test has pending; the oldest make room.
const MOST: usize = 4096;

/// An authorization request that somebody agreed to.
pub(crate) struct Code {
    pub(crate) user: String,
    pub(crate) client_id: String,
    pub(crate) redirect_uri: String,
    pub(crate) challenge: String,
    pub(crate) nonce: Option<String>,
}

/// What became of a device code (RFC 8628 section 3.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Pending,
    Approved { user: String },
    Denied,
}

#[derive(Default)]
pub(crate) struct Grants {
    codes: Expiring<Code>,
    devices: Expiring<(String, Device)>,
    tokens: Expiring<String>,
}

impl Grants {
    pub(crate) fn issue_code(&mut self, code: Code) -> String {
        self.codes.insert(random_text(), code, CODE_LIFE)
    }

    /// Redeems a code: once, by the same client, for the same redirect, with the right verifier.
    pub(crate) fn redeem_code(
        &mut self,
        code: &str,
        client_id: &str,
        redirect_uri: &str,
        verifier: &str,
    ) -> Option<Code> {
        let code = self.codes.take(code)?;
        let right = code.client_id == client_id
            && code.redirect_uri == redirect_uri
            && code.challenge == challenge_of(verifier);
        right.then_some(code)
    }

    /// Device code and user code.
    pub(crate) fn start_device(&mut self) -> (String, String) {
        let user_code = user_code();
        let device_code =
            self.devices.insert(random_text(), (user_code.clone(), Device::Pending), DEVICE_CODE_LIFE);
        (device_code, user_code)
    }

    /// Is somebody waiting with this user code?
    pub(crate) fn is_pending(&self, user_code: &str) -> bool {
        let entered = normalised(user_code);
        self.devices.values().any(|(code, state)| normalised(code) == entered && *state == Device::Pending)
    }

    /// The answer of a person. False: nothing was waiting for it.
    pub(crate) fn settle_device(&mut self, user_code: &str, answer: &Device) -> bool {
        let entered = normalised(user_code);
        let waiting = self
            .devices
            .values_mut()
            .find(|(code, state)| normalised(code) == entered && *state == Device::Pending);
        let found = waiting.map(|(_, state)| *state = answer.clone());
        found.is_some()
    }

    /// Where a device code stands; a settled one is used up. `None`: unknown or too old.
    pub(crate) fn poll_device(&mut self, device_code: &str) -> Option<Device> {
        let (_, state) = self.devices.peek(device_code)?;
        let state = state.clone();
        if state != Device::Pending {
            self.devices.take(device_code);
        }
        Some(state)
    }

    pub(crate) fn issue_token(&mut self, user: String) -> String {
        self.tokens.insert(random_text(), user, TOKEN_LIFE)
    }

    pub(crate) fn user_of_token(&self, token: &str) -> Option<&String> {
        self.tokens.peek(token)
    }
}

/// People may leave out the dash and write small letters (RFC 8628 section 6.1).
fn normalised(user_code: &str) -> String {
    user_code.chars().filter(char::is_ascii_alphabetic).map(|letter| letter.to_ascii_uppercase()).collect()
}

struct Expiring<T>(HashMap<String, (Instant, T)>);

impl<T> Default for Expiring<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Expiring<T> {
    fn insert(&mut self, key: String, value: T, life: Duration) -> String {
        let now = Instant::now();
        self.0.retain(|_, (end, _)| *end > now);
        if self.0.len() >= MOST
            && let Some(oldest) = self.0.iter().min_by_key(|(_, (end, _))| *end).map(|(key, _)| key.clone())
        {
            self.0.remove(&oldest);
        }
        self.0.insert(key.clone(), (now + life, value));
        key
    }

    fn take(&mut self, key: &str) -> Option<T> {
        let (end, value) = self.0.remove(key)?;
        (end > Instant::now()).then_some(value)
    }

    fn peek(&self, key: &str) -> Option<&T> {
        self.0.get(key).filter(|(end, _)| *end > Instant::now()).map(|(_, value)| value)
    }

    fn values(&self) -> impl Iterator<Item = &T> {
        let now = Instant::now();
        self.0.values().filter(move |(end, _)| *end > now).map(|(_, value)| value)
    }

    fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let now = Instant::now();
        self.0.values_mut().filter(move |(end, _)| *end > now).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_code_waits_is_approved_and_is_used_up() {
        let mut grants = Grants::default();
        let (device, user_code) = grants.start_device();
        assert_eq!(grants.poll_device(&device), Some(Device::Pending));
        let typed = user_code.to_lowercase().replace('-', "");
        assert!(grants.settle_device(&typed, &Device::Approved { user: "alice".into() }));
        assert!(!grants.settle_device(&typed, &Device::Denied), "settled once");
        assert_eq!(grants.poll_device(&device), Some(Device::Approved { user: "alice".into() }));
        assert_eq!(grants.poll_device(&device), None);
    }

    #[test]
    fn a_code_needs_its_verifier_and_works_once() {
        let mut grants = Grants::default();
        let mut issue = || {
            grants.issue_code(Code {
                user: "alice".into(),
                client_id: "cli".into(),
                redirect_uri: "http://127.0.0.1:1/".into(),
                challenge: challenge_of("verifier"),
                nonce: None,
            })
        };
        let (wrong, right) = (issue(), issue());
        assert!(grants.redeem_code(&wrong, "cli", "http://127.0.0.1:1/", "guess").is_none());
        assert!(grants.redeem_code(&right, "cli", "http://127.0.0.1:1/", "verifier").is_some());
        assert!(grants.redeem_code(&right, "cli", "http://127.0.0.1:1/", "verifier").is_none());
    }
}
