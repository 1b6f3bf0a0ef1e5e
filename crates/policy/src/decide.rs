//! Decisions by Cedar's own authorizer.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cedar_policy::pst::Clause;
use cedar_policy::{Authorizer, Context, Decision, Entities, PolicySet, Request, RestrictedExpression};

use crate::entities::uid;
use crate::load::Policy;
use crate::question::{Answer, Principal, Question};
use crate::rule::Rule;

const DENIED: Answer =
    Answer { allowed: false, rule: None, observed: None, quiet: false, session_limit: None };

/// Answers questions of one person about one host.
#[derive(Debug)]
pub struct Decider<'a> {
    policy: &'a Policy,
    entities: Entities,
    principal: Principal,
    host: String,
}

impl Decider<'_> {
    /// As [`Policy::decide`]. Questions of others, or about other hosts, are denied.
    pub fn decide(&self, question: &Question) -> Answer {
        if question.principal() == &self.principal && question.host() == Some(self.host.as_str()) {
            self.policy.decide_among(question, &self.entities).0
        } else {
            DENIED
        }
    }
}

impl Policy {
    /// Decides a question. Anything that goes wrong on the way is a denial.
    ///
    /// Several rules may apply. Of forbids the strongest `@on_violation` is named, of permits one that is recorded; then
    /// one that looks at the path alone, then the first id.
    pub fn decide(&self, question: &Question) -> Answer {
        self.decide_by(question).0
    }

    /// The answer and the ids of all rules that apply and could have been named.
    pub(crate) fn decide_by(&self, question: &Question) -> (Answer, Vec<&str>) {
        match self.inner.known.with(question.principal(), question.host()) {
            Some(entities) => self.decide_among(question, &entities),
            None => (DENIED, vec![]),
        }
    }

    /// For many questions of one person about one host: entities are put together once.
    ///
    /// None cannot happen with names as they are; see [`Self::decide`].
    pub fn decider(&self, principal: &Principal, host: &str) -> Option<Decider<'_>> {
        let entities = self.inner.known.with(principal, Some(host))?;
        Some(Decider { policy: self, entities, principal: principal.clone(), host: host.to_owned() })
    }

    fn decide_among(&self, question: &Question, entities: &Entities) -> (Answer, Vec<&str>) {
        let denied = DENIED;
        let Some(request) = request(question) else { return (denied, vec![]) };
        let (allowed, mut rules) = self.ask(&request, &self.inner.enforced, entities);
        let rule = if allowed { permit(&rules) } else { forbid(&rules) };
        let quiet = allowed && rule.is_some_and(|rule| rule.quiet);
        let mut answer = Answer { allowed, rule: rule.map(|rule| rule.info.clone()), ..denied };
        if allowed {
            let (_, watched) = self.ask(&request, &self.inner.monitored, entities);
            answer.observed = forbid(&watched).map(|rule| rule.info.clone());
            answer.quiet = quiet && answer.observed.is_none();
            answer.session_limit = rules.iter().filter_map(|rule| rule.session_limit).min();
            rules.extend(watched);
        }
        (answer, rules.into_iter().map(|rule| rule.info.id.as_str()).collect())
    }

    /// Local users as whom this person may open a session on this host, sorted, as far as rules name
    /// users. For rules on the client's address: those open from at least one address that a rule names.
    pub fn local_users(&self, principal: &Principal, host: &str) -> Vec<String> {
        // 192.0.2.1 (RFC 5737) and 2001:db8::1 (RFC 3849) stand for "anywhere else".
        let anywhere = ["192.0.2.1", "2001:db8::1", "127.0.0.1", "::1"];
        let mut addresses: BTreeSet<IpAddr> = anywhere.iter().filter_map(|text| text.parse().ok()).collect();
        for text in self.texts() {
            if let Ok(address) = text.split('/').next().unwrap_or_default().parse() {
                addresses.insert(address);
            }
        }
        let mut users = BTreeSet::new();
        for address in addresses {
            users.extend(self.local_users_from(principal, host, address));
        }
        users.into_iter().collect()
    }

    /// Like [`Self::local_users`], for a client at this address.
    pub fn local_users_from(&self, principal: &Principal, host: &str, client_address: IpAddr) -> Vec<String> {
        let allowed = |local_user: &String| {
            let question = Question::OpenSession {
                principal: principal.clone(),
                host: host.to_owned(),
                local_user: local_user.clone(),
                client_address,
            };
            self.decide(&question).allowed
        };
        self.texts().into_iter().filter(allowed).collect()
    }

    /// Every string that a rule on sessions, or a host's label, could compare a local user with.
    fn texts(&self) -> BTreeSet<String> {
        let mut texts = self.session_texts();
        texts.retain(|text| {
            !text.is_empty() && !text.contains(['\0', '/', ':', '\n']) || text.parse::<IpAddr>().is_ok()
        });
        texts
    }

    /// Every string in a rule on sessions, and every label of a host.
    pub(crate) fn session_texts(&self) -> BTreeSet<String> {
        let mut texts = BTreeSet::new();
        for rule in self.inner.rules.values().filter(|rule| rule.speaks_of("open_session")) {
            for clause in rule.body.clauses() {
                let (Clause::When(expr) | Clause::Unless(expr)) = clause;
                crate::expr::strings(expr, &mut texts);
            }
        }
        for entity in self.inner.known.entities.iter() {
            for (_, value) in entity.tags() {
                if let Ok(cedar_policy::EvalResult::String(text)) = value {
                    texts.insert(text);
                }
            }
        }
        texts
    }

    /// Cedar's decision and the rules that determine it.
    fn ask(&self, request: &Request, set: &PolicySet, entities: &Entities) -> (bool, Vec<&Rule>) {
        let response = Authorizer::new().is_authorized(request, set, entities);
        let rules = response
            .diagnostics()
            .reason()
            .filter_map(|id| self.inner.rules.get(AsRef::<str>::as_ref(id)))
            .collect();
        (response.decision() == Decision::Allow, rules)
    }
}

/// Of several permits that apply, the one that is named.
fn permit<'a>(rules: &[&'a Rule]) -> Option<&'a Rule> {
    rules.iter().copied().filter(|rule| !rule.forbids).min_by_key(|rule| rule.precedence())
}

/// Of several forbids that apply, the one that is named and whose effect counts.
fn forbid<'a>(rules: &[&'a Rule]) -> Option<&'a Rule> {
    rules.iter().copied().filter(|rule| rule.forbids).min_by_key(|rule| rule.precedence())
}

/// The name of a protocol number in policies.
pub(crate) fn protocol_name(number: u8) -> String {
    match number {
        // ICMP and ICMPv6: nobody means just one of them.
        1 | 58 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => other.to_string(),
    }
}

/// The address as which a destination is judged: an IPv4-mapped one as IPv4, and the unspecified one as
/// the loopback address, which is where Linux connects it to.
pub(crate) fn judged_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    }
}

/// The last component of a path.
fn name_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// The question as Cedar has it. None only if a value cannot be expressed, which then is denied.
pub(crate) fn request(question: &Question) -> Option<Request> {
    let text = |value: &str| RestrictedExpression::new_string(value.to_owned());
    let address = |value: &IpAddr| RestrictedExpression::new_ip(value.to_canonical().to_string());
    let destination = |value: &IpAddr| RestrictedExpression::new_ip(judged_as(*value).to_string());
    let pairs: Vec<(&str, RestrictedExpression)> = match question {
        Question::OpenSession { local_user, client_address, .. } => {
            vec![("local_user", text(local_user)), ("client_address", address(client_address))]
        }
        Question::Exec { local_user, path, args, fileless, setuid, caller, .. } => {
            let none = [String::new()];
            let args: &[String] = if args.is_empty() { &none } else { args };
            vec![
                ("local_user", text(local_user)),
                ("path", text(path)),
                ("name", text(name_of(path))),
                ("args", RestrictedExpression::new_set(args.iter().map(|arg| text(arg)))),
                ("command_line", text(&args.join(" "))),
                ("fileless", RestrictedExpression::new_bool(*fileless)),
                ("setuid", RestrictedExpression::new_bool(*setuid)),
                ("caller", text(caller)),
            ]
        }
        Question::File { local_user, path, fileless, caller, .. } => vec![
            ("local_user", text(local_user)),
            ("path", text(path)),
            ("name", text(name_of(path))),
            ("fileless", RestrictedExpression::new_bool(*fileless)),
            ("caller", text(caller)),
        ],
        Question::System { local_user, operation, outside, caller, .. } => vec![
            ("local_user", text(local_user)),
            ("operation", text(operation.name())),
            ("outside", RestrictedExpression::new_bool(*outside)),
            ("caller", text(caller)),
        ],
        Question::Listen { local_user, address: at, port, protocol, .. } => vec![
            ("local_user", text(local_user)),
            ("address", address(at)),
            ("port", RestrictedExpression::new_long(i64::from(*port))),
            ("protocol", text(&protocol_name(*protocol))),
        ],
        Question::Connect { local_user, address: to, port, protocol, .. } => vec![
            ("local_user", text(local_user)),
            ("address", destination(to)),
            ("port", RestrictedExpression::new_long(i64::from(*port))),
            ("protocol", text(&protocol_name(*protocol))),
        ],
        Question::Gateway { action, change, .. } if action.is_about_a_change() => change.context(),
        Question::Gateway { .. } => vec![],
    };
    let context =
        Context::from_pairs(pairs.into_iter().map(|(name, value)| (name.to_owned(), value))).ok()?;
    let resource = match question.host() {
        Some(host) => uid("Host", host),
        None => uid("Gateway", "gateway"),
    };
    let principal = uid("User", &question.principal().user);
    Request::new(principal, uid("Action", question.action()), resource, context, None).ok()
}
