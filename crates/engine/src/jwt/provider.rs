//! Issuers of tokens, and what a good token of theirs does to the request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};

use super::keys::KeySet;
use super::locate::Location;
use super::remote::{Look, RemoteKeys};
use super::status::Status;
use super::token::Token;
use crate::matcher::StringMatcher;
use crate::metadata::Datum;
use crate::moment::Moment;

/// One issuer (Envoy's `JwtProvider`).
#[derive(Debug)]
pub struct Provider {
    /// Its name in the filter.
    pub name: Arc<str>,
    /// `iss` of its tokens; `None`: any.
    pub issuer: Option<Arc<str>>,
    /// Audiences of which a token must have one; none: any.
    pub audiences: Audiences,
    /// Subjects that it may speak of.
    pub subjects: Option<StringMatcher>,
    /// `exp` must be there. Default false.
    pub require_expiration: bool,
    /// The longest time to `exp` that is accepted.
    pub max_lifetime: Option<Duration>,
    /// Its keys.
    pub keys: Keys,
    /// Leave the token in the request. Default false.
    pub forward: bool,
    /// Where tokens stand, in the order of [`Location::rank`].
    pub locations: Vec<Location>,
    /// Header for the payload, and whether its base64 is padded.
    pub payload_header: Option<(HeaderName, bool)>,
    /// Headers for single claims.
    pub claim_headers: Vec<(HeaderName, Vec<Arc<str>>)>,
    /// Key of the payload in the request's metadata.
    pub payload_in_metadata: Option<Arc<str>>,
    /// Claims that metadata shows as the list of their words.
    pub spaced_claims: Vec<Arc<str>>,
    /// Key of the header in the request's metadata.
    pub header_in_metadata: Option<Arc<str>>,
    /// Key under which metadata shows why a token was refused.
    pub failure_in_metadata: Option<Arc<str>>,
    /// How far clocks may differ, seconds. Default 60.
    pub skew: u64,
    /// The route is chosen anew after a good token. Default false.
    pub clear_route: bool,
}

/// Where keys come from.
#[derive(Debug, Clone)]
pub enum Keys {
    /// From the configuration.
    Local(Arc<KeySet>),
    /// Fetched.
    Remote(Arc<RemoteKeys>),
}

/// Audiences, without their scheme and last slash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audiences(Vec<Arc<str>>);

impl Audiences {
    /// A list as configured.
    #[must_use]
    pub fn new(names: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self(names.into_iter().map(|name| Arc::from(bare(&name))).collect())
    }

    fn allow(&self, token: &Token) -> bool {
        self.0.is_empty()
            || token.audiences.iter().any(|audience| self.0.iter().any(|known| **known == *bare(audience)))
    }
}

fn bare(audience: &str) -> &str {
    let rest = audience.strip_prefix("http://").or_else(|| audience.strip_prefix("https://")).unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

/// What must be fetched before a token can be judged.
pub(super) enum Judged {
    Status(Status),
    Fetch(Arc<RemoteKeys>),
}

/// What there is to judge a token by.
pub(super) struct Judge<'a> {
    /// Seconds since 1970.
    pub(super) time: u64,
    pub(super) now: Moment,
    /// Sets that were fetched for this request already.
    pub(super) tried: &'a [Arc<RemoteKeys>],
}

impl Provider {
    /// Whether a token with this `iss` may be one of its tokens.
    pub(super) fn issues(&self, issuer: &str) -> bool {
        self.issuer.as_deref().is_none_or(|own| own == issuer)
    }

    /// Judges a token: claims first, then the signature.
    pub(super) fn judge(&self, token: &Token, audiences: Option<&Audiences>, judge: &Judge<'_>) -> Judged {
        if let Err(status) = self.check_claims(token, audiences, judge.time) {
            return Judged::Status(status);
        }
        let remote = match &self.keys {
            Keys::Local(keys) => return Judged::Status(keys.verify(&token.signed)),
            Keys::Remote(remote) => remote,
        };
        let tried = judge.tried.iter().any(|known| Arc::ptr_eq(known, remote));
        match remote.look(judge.now) {
            Look::Keys(keys, _) => match keys.verify(&token.signed) {
                Status::KidAlgMismatch if !tried && remote.may_be_outdated(judge.now) => Judged::Fetch(remote.clone()),
                status => Judged::Status(status),
            },
            Look::Fetch if !tried => Judged::Fetch(remote.clone()),
            Look::Fetch | Look::Failed => Judged::Status(Status::FetchFail),
        }
    }

    pub(super) fn check_claims(&self, token: &Token, audiences: Option<&Audiences>, time: u64) -> Result<(), Status> {
        token.at(time, self.skew).ok()?;
        if self.subjects.as_ref().is_some_and(|matcher| !matcher.matches(&token.subject)) {
            return Err(Status::VerificationFail);
        }
        let lifetime = match (self.max_lifetime, token.expires) {
            (Some(limit), Some(end)) => end <= time.saturating_add(limit.as_secs()),
            (Some(_), None) => false,
            (None, end) => end.is_some() || !self.require_expiration,
        };
        if !lifetime {
            return Err(Status::VerificationFail);
        }
        if !audiences.unwrap_or(&self.audiences).allow(token) {
            return Err(Status::AudienceNotAllowed);
        }
        Ok(())
    }

    /// Headers that only a good token may set.
    pub(super) fn own_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.payload_header.iter().map(|(name, _)| name).chain(self.claim_headers.iter().map(|(name, _)| name))
    }

    /// What a good token does.
    pub(super) fn accept(&self, token: &Token, at: &Location, effects: &mut Effects) {
        if let Some((name, padded)) = &self.payload_header {
            let mut text = token.signed.payload_text.to_string();
            if *padded {
                text.extend(std::iter::repeat_n('=', (4 - text.len() % 4) % 4));
            }
            effects.add(name, &text);
        }
        for (name, path) in &self.claim_headers {
            let claim = path.iter().try_fold(&token.claims, |datum, key| datum.key(key));
            if let Some(text) = claim.and_then(claim_text) {
                effects.add(name, &text);
            }
        }
        if !self.forward {
            match at {
                Location::Header(name, _) => effects.drop_headers.push(name.clone()),
                Location::Parameter(name) => effects.drop_parameters.push(name.clone()),
                // As in Envoy: a cookie stays where it is.
                Location::Cookie(_) => {}
            }
        }
        if let Some(key) = &self.header_in_metadata {
            effects.metadata.insert(key.clone(), token.signed.header.clone());
        }
        if let Some(key) = &self.payload_in_metadata {
            effects.metadata.insert(key.clone(), self.normal(&token.claims));
        }
        effects.clear_route |=
            self.clear_route && (self.payload_in_metadata.is_some() || !self.claim_headers.is_empty());
    }

    /// Notes why a token was refused, where metadata shall show it.
    pub(super) fn refuse(&self, status: Status, effects: &mut Effects) {
        if let Some(key) = &self.failure_in_metadata {
            let text = |value: String| Datum::Text(Arc::from(value));
            let members = [("code", text(status.code().to_string())), ("message", text(status.text().to_owned()))];
            let object = members.into_iter().map(|(name, value)| (Arc::from(name), value)).collect();
            effects.failures.insert(key.clone(), Datum::Object(object));
        }
    }

    fn normal(&self, payload: &Datum) -> Datum {
        let Datum::Object(members) = payload else { return payload.clone() };
        let mut members = members.clone();
        for name in &self.spaced_claims {
            if let Some(value @ Datum::Text(_)) = members.get_mut(name) {
                let words = value.text().unwrap_or_default().split(' ').filter(|word| !word.is_empty());
                *value = Datum::List(words.map(|word| Datum::Text(Arc::from(word))).collect());
            }
        }
        Datum::Object(members)
    }
}

/// A claim as a header's value.
fn claim_text(claim: &Datum) -> Option<String> {
    let text = match claim {
        Datum::Null => return None,
        Datum::Text(text) => text.to_string(),
        Datum::Flag(flag) => flag.to_string(),
        Datum::Number(number) if number.fract() == 0.0 && *number >= 0.0 && *number < u64::MAX as f64 => {
            (*number as u64).to_string()
        }
        Datum::Number(number) => format!("{number:.6}"),
        Datum::List(_) | Datum::Object(_) => STANDARD.encode(claim.to_json().to_string()),
    };
    (!text.is_empty()).then_some(text)
}

/// What the filter does to a request that it lets pass.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effects {
    /// Headers to take away first.
    pub drop_headers: Vec<HeaderName>,
    /// Query parameters to take away.
    pub drop_parameters: Vec<Arc<str>>,
    /// Headers to add.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Trees for the request's metadata, by key.
    pub metadata: BTreeMap<Arc<str>, Datum>,
    /// Why tokens were refused, for the same place.
    pub failures: BTreeMap<Arc<str>, Datum>,
    /// The route is to be chosen anew.
    pub clear_route: bool,
}

impl Effects {
    fn add(&mut self, name: &HeaderName, text: &str) {
        if let Ok(value) = HeaderValue::from_str(text) {
            self.headers.push((name.clone(), value));
        }
    }

    /// Whether a token at this place was taken out of the request already.
    pub(super) fn took(&self, at: &Location) -> bool {
        match at {
            Location::Header(name, _) => self.drop_headers.contains(name),
            Location::Parameter(name) => self.drop_parameters.contains(name),
            Location::Cookie(_) => false,
        }
    }
}
