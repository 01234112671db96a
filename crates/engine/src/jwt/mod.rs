//! Tokens (JWT): which ones a request needs, whether they are good, and what they tell the filters behind.
//!
//! Semantics are those of Envoy's `jwt_authn`, with less leniency: no `alg: none`, a key serves only the algorithms of its
//! kind, `crit` and members that stand twice are refused, nesting and sizes have bounds. Time and keys come from outside;
//! the only cryptography is behind [`verify`].

mod json;
mod keys;
mod locate;
mod provider;
mod remote;
mod requirement;
mod status;
mod token;
mod verify;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderName, HeaderValue, StatusCode, header};

pub use keys::{KeySet, MAX_KEY_SET};
pub use locate::Location;
pub use provider::{Audiences, Effects, Keys, Provider};
pub use remote::{Look, RemoteKeys, RemoteSource, STALE_BOUND};
pub use requirement::Requirement;
pub use status::Status;
pub use token::{MAX_TOKEN, Signed, Token, parse, parse_signed};
pub use verify::Algorithm;

use crate::dice::Dice;
use crate::facts::Facts;
use crate::metadata::{Datum, Metadata};
use crate::moment::Moment;
use crate::reply::{Flags, LocalReply};
use crate::routes::RouteMatch;
use provider::Judge;
use requirement::{Case, Fetch};

/// The namespace in which filters behind find what tokens said.
pub const SPACE: &str = "envoy.filters.http.jwt_authn";
/// Longest part of the path that is told to a client that is refused.
const MAX_REALM_PATH: usize = 256;

/// The filter (Envoy's `JwtAuthentication`).
#[derive(Debug)]
pub struct JwtAuthn {
    /// Rules in order; the first that matches says what is needed. `None`: nothing.
    pub rules: Vec<(RouteMatch, Option<Arc<Requirement>>)>,
    /// Requirements that routes name, sorted by name.
    pub named: Vec<(Arc<str>, Arc<Requirement>)>,
    /// All issuers.
    pub providers: Vec<Arc<Provider>>,
    /// Let CORS preflights pass. Default false.
    pub bypass_preflight: bool,
    /// Refuse without a body and without `www-authenticate`. Default false.
    pub strip_failure: bool,
}

/// What a route says about the filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtOverride {
    /// Nothing is needed.
    Disabled,
    /// What the requirement of this name says.
    Named(Arc<str>),
}

/// What the filter says to a request.
#[derive(Debug)]
pub enum Outcome {
    /// It goes on, changed so.
    Pass(Box<Effects>),
    /// It goes on as it is: nothing was looked at.
    Untouched,
    /// It is refused.
    Refuse(Box<LocalReply>),
    /// These keys must be fetched first.
    Fetch(Arc<RemoteKeys>),
}

impl JwtAuthn {
    /// Judges a request. `tried` are the key sets that were fetched for it already.
    #[must_use]
    pub fn judge(
        &self,
        setting: Option<&JwtOverride>,
        facts: &Facts<'_>,
        now: Moment,
        tried: &[Arc<RemoteKeys>],
        dice: &mut Dice,
    ) -> Outcome {
        if self.bypass_preflight && is_preflight(facts) {
            return Outcome::Untouched;
        }
        let requirement = match setting {
            Some(JwtOverride::Disabled) => return Outcome::Untouched,
            Some(JwtOverride::Named(name)) => match self.named.iter().find(|(known, _)| known == name) {
                Some((_, requirement)) => requirement,
                None => return Outcome::Refuse(Box::new(self.unknown(name))),
            },
            None => match self.rules.iter().find(|(rule, _)| rule.matches(facts, dice)) {
                Some((_, Some(requirement))) => requirement,
                _ => return Outcome::Untouched,
            },
        };
        let time = facts.started.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let case = Case { facts, judge: Judge { time, now, tried } };
        let mut effects = Effects::default();
        match requirement.check(&case, &mut effects) {
            Err(Fetch(remote)) => Outcome::Fetch(remote),
            Ok(Status::Ok) => {
                // What only a good token may say is taken away first, whoever said it.
                let own = self.providers.iter().flat_map(|provider| provider.own_headers());
                effects.drop_headers.extend(own.filter(|name| facts.headers.contains_key(*name)).cloned());
                Outcome::Pass(Box::new(effects))
            }
            Ok(status) => Outcome::Refuse(Box::new(self.refusal(status, facts))),
        }
    }

    /// What good tokens with these claims (JSON) would tell the filters behind; for those who ask on paper.
    ///
    /// # Errors
    /// Why such a token would be refused.
    pub fn assume(&self, claims: &str, started: SystemTime) -> Result<Effects, Status> {
        let token = token::unsigned(claims)?;
        let provider = self.providers.iter().find(|provider| provider.issues(&token.issuer));
        let provider = provider.ok_or(Status::UnknownIssuer)?;
        let time = started.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        provider.check_claims(&token, None, time)?;
        let mut effects = Effects::default();
        if let Some(place) = provider.locations.first() {
            provider.accept(&token, place, &mut effects);
        }
        Ok(effects)
    }

    /// Key sets that should be fetched in the background now.
    pub fn outdated(&self, now: Moment) -> impl Iterator<Item = &Arc<RemoteKeys>> {
        let remote = self.providers.iter().filter_map(|provider| match &provider.keys {
            Keys::Remote(remote) => Some(remote),
            Keys::Local(_) => None,
        });
        remote.filter(move |remote| matches!(remote.look(now), Look::Keys(_, true)))
    }

    fn refusal(&self, status: Status, facts: &Facts<'_>) -> LocalReply {
        let code = match status {
            Status::AudienceNotAllowed => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        };
        let body = if self.strip_failure { "" } else { status.text() };
        let mut reply = LocalReply::error(code, body, details(status.text()), Flags::NONE);
        if !self.strip_failure {
            reply.headers.extend(challenge(status, facts));
        }
        reply
    }

    fn unknown(&self, name: &str) -> LocalReply {
        let known: Vec<&str> = self.named.iter().map(|(name, _)| &**name).collect();
        let message = format!("Wrong requirement_name: {name}. It should be one of [{}]", known.join(","));
        let mut reply = LocalReply::error(StatusCode::FORBIDDEN, "", details(&message), Flags::NONE);
        if !self.strip_failure {
            reply.body = format!("Failed JWT authentication: {message}").into();
        }
        reply
    }
}

impl Effects {
    /// The path without the parameters that tokens stood in.
    #[must_use]
    pub fn path(&self, path: &str) -> Option<String> {
        (!self.drop_parameters.is_empty()).then(|| locate::without(path, &self.drop_parameters))
    }

    /// Puts what tokens said into the request's metadata.
    pub fn tell(&self, metadata: &mut Metadata) {
        let all = self.failures.iter().chain(&self.metadata);
        let members: BTreeMap<_, _> = all.map(|(name, datum)| (name.clone(), datum.clone())).collect();
        if !members.is_empty() {
            metadata.set(SPACE, Datum::Object(members));
        }
    }
}

/// `jwt_authn_access_denied{...}`, without white space as in Envoy.
fn details(message: &str) -> Cow<'static, str> {
    let message: String = message.chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
    format!("jwt_authn_access_denied{{{message}}}").into()
}

fn challenge(status: Status, facts: &Facts<'_>) -> Option<(HeaderName, HeaderValue)> {
    let end = facts.path.char_indices().map(|(at, _)| at).find(|at| *at >= MAX_REALM_PATH);
    let path = facts.path.get(..end.unwrap_or(facts.path.len())).unwrap_or_default();
    let error = if status == Status::Missed { "" } else { ", error=\"invalid_token\"" };
    let text = format!("Bearer realm=\"{}://{}{path}\"{error}", facts.scheme, facts.authority);
    HeaderValue::from_str(&text).ok().map(|value| (header::WWW_AUTHENTICATE, value))
}

fn is_preflight(facts: &Facts<'_>) -> bool {
    let given = |name: HeaderName| facts.headers.get(name).is_some_and(|value| !value.is_empty());
    facts.method == "OPTIONS" && given(header::ORIGIN) && given(header::ACCESS_CONTROL_REQUEST_METHOD)
}
