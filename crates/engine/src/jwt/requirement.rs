//! Which tokens a request needs.

use std::sync::Arc;

use super::locate::{Found, Location};
use super::provider::{Audiences, Effects, Judge, Judged, Provider};
use super::remote::RemoteKeys;
use super::status::Status;
use super::token::{self, Token};
use crate::facts::Facts;

/// What a request needs (Envoy's `JwtRequirement`).
#[derive(Debug, Clone)]
pub enum Requirement {
    /// Nothing.
    Nothing,
    /// Good tokens of one issuer; with audiences other than the provider's own.
    Provider(Arc<Provider>, Option<Audiences>),
    /// One of these.
    Any {
        /// Which; at least one.
        of: Vec<Self>,
        /// Or no token at all.
        missing: bool,
        /// Or whatever there is.
        failed: bool,
    },
    /// All of these.
    All(Vec<Self>),
    /// No bad token of any of these issuers.
    AllowMissing(Vec<Arc<Provider>>),
    /// Anything; good tokens of these issuers are used.
    AllowMissingOrFailed(Vec<Arc<Provider>>),
}

/// A key set must be fetched before there is an answer.
pub(super) struct Fetch(pub(super) Arc<RemoteKeys>);

/// What a requirement is held against.
pub(super) struct Case<'c, 'a> {
    pub(super) facts: &'c Facts<'a>,
    pub(super) judge: Judge<'c>,
}

impl Requirement {
    /// Holds it against a request. What good tokens do is in `effects`, but for branches that failed.
    pub(super) fn check(&self, case: &Case<'_, '_>, effects: &mut Effects) -> Result<Status, Fetch> {
        match self {
            Self::Nothing => Ok(Status::Ok),
            Self::Provider(provider, audiences) => case.one(provider, audiences.as_ref(), effects),
            Self::Any { of, missing, failed } => any(of, *missing, *failed, case, effects),
            Self::All(all) => {
                for requirement in all {
                    let status = requirement.check(case, effects)?;
                    if status != Status::Ok {
                        return Ok(status);
                    }
                }
                Ok(Status::Ok)
            }
            Self::AllowMissing(providers) => Ok(match case.every(providers, effects)? {
                Status::Missed => Status::Ok,
                status => status,
            }),
            Self::AllowMissingOrFailed(providers) => {
                case.every(providers, effects)?;
                Ok(Status::Ok)
            }
        }
    }
}

fn any(
    of: &[Requirement],
    missing: bool,
    failed: bool,
    case: &Case<'_, '_>,
    effects: &mut Effects,
) -> Result<Status, Fetch> {
    let mut worst = Status::Missed;
    for requirement in of {
        let mut own = effects.clone();
        let status = requirement.check(case, &mut own)?;
        if status == Status::Ok {
            *effects = own;
            return Ok(Status::Ok);
        }
        // Of a branch that failed only its reasons stay.
        effects.failures = own.failures;
        // A missing token and a foreign issuer say less than a token that is wrong.
        if !matches!(status, Status::Missed | Status::UnknownIssuer) || worst == Status::Missed {
            worst = status;
        }
    }
    Ok(if failed || (missing && worst == Status::Missed) { Status::Ok } else { worst })
}

impl Case<'_, '_> {
    /// All tokens at the places of one issuer must be good ones of his.
    fn one(
        &self,
        provider: &Arc<Provider>,
        audiences: Option<&Audiences>,
        effects: &mut Effects,
    ) -> Result<Status, Fetch> {
        let mut found = Vec::new();
        self.find(&provider.locations, effects, &mut found);
        if found.is_empty() {
            provider.refuse(Status::Missed, effects);
            return Ok(Status::Missed);
        }
        while let Some(token) = found.pop() {
            let parsed = token::parse(&token.text);
            let status = match &parsed {
                Ok(parsed) if provider.issues(&parsed.issuer) => self.judge(provider, parsed, audiences)?,
                Ok(_) => Status::UnknownIssuer,
                Err(status) => *status,
            };
            match &parsed {
                Ok(parsed) if status == Status::Ok => provider.accept(parsed, token.at, effects),
                _ => {
                    provider.refuse(status, effects);
                    return Ok(status);
                }
            }
        }
        Ok(Status::Ok)
    }

    /// Every token at any place of some issuers must be a good one of the issuer that it names and whose place it is.
    /// (Envoy looks at the last one only; one bad token beside a good one could then be taken for it further on.)
    fn every(&self, providers: &[Arc<Provider>], effects: &mut Effects) -> Result<Status, Fetch> {
        let mut locations: Vec<&Location> = providers.iter().flat_map(|provider| &provider.locations).collect();
        locations.sort_by_key(|location| location.rank());
        locations.dedup();
        let mut found = Vec::new();
        for location in locations {
            self.find(std::slice::from_ref(location), effects, &mut found);
        }
        let mut all = if found.is_empty() { Status::Missed } else { Status::Ok };
        while let Some(token) = found.pop() {
            let parsed = token::parse(&token.text);
            let provider = parsed.as_ref().ok().and_then(|parsed| of_issuer(providers, parsed, token.at));
            let status = match (&parsed, provider) {
                (Err(status), _) => *status,
                (Ok(_), None) => Status::UnknownIssuer,
                (Ok(parsed), Some(provider)) => self.judge(provider, parsed, None)?,
            };
            match (&parsed, provider) {
                (Ok(parsed), Some(provider)) if status == Status::Ok => provider.accept(parsed, token.at, effects),
                _ => all = status,
            }
        }
        Ok(all)
    }

    fn find<'f>(&'f self, locations: &'f [Location], effects: &Effects, found: &mut Vec<Found<'f>>) {
        for location in locations.iter().filter(|location| !effects.took(location)) {
            location.find(self.facts, found);
        }
    }

    fn judge(&self, provider: &Provider, token: &Token, audiences: Option<&Audiences>) -> Result<Status, Fetch> {
        match provider.judge(token, audiences, &self.judge) {
            Judged::Status(status) => Ok(status),
            Judged::Fetch(remote) => Err(Fetch(remote)),
        }
    }
}

/// The first provider of a token's issuer, else the first for any issuer; the token must stand at a place of his.
fn of_issuer<'p>(providers: &'p [Arc<Provider>], token: &Token, at: &Location) -> Option<&'p Arc<Provider>> {
    let named = providers.iter().find(|provider| provider.issuer.as_deref() == Some(&*token.issuer));
    let provider = named.or_else(|| providers.iter().find(|provider| provider.issuer.is_none()));
    provider.filter(|provider| provider.locations.contains(at))
}
