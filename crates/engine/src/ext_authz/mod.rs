//! External authorization: which requests an authorizer is asked about, what it is told, and what its answer means.
//!
//! Semantics are those of Envoy's `ext_authz`. Asking is the shell's matter; here is only what is said and understood.

mod grpc;
mod http;

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;

use crate::decide::Changed;
use crate::dice::{Dice, Fraction};
use crate::facts::Facts;
use crate::matcher::{MetadataMatcher, StringMatcher};
use crate::metadata::{Datum, Metadata};
use crate::rbac::{self, RbacReport};
use crate::reply::{Flags, LocalReply};

pub use self::http::HttpService;

/// The namespace in which the authorizer's metadata stands.
pub const SPACE: &str = "envoy.filters.http.ext_authz";

/// The filter (Envoy's `ExtAuthz`).
#[derive(Debug)]
pub struct ExtAuthz {
    /// Whom it asks.
    pub service: Service,
    /// Let pass what could not be asked. Default false.
    pub failure_allow: bool,
    /// And say so to the upstream. Default false.
    pub failure_header: bool,
    /// The answer to what could not be asked. Default 403.
    pub status_on_error: StatusCode,
    /// What of the body it is shown.
    pub body: Option<BodySettings>,
    /// The route is chosen anew after an answer that changes headers. Default false.
    pub clear_route: bool,
    /// Share of requests that are asked about. Default all.
    pub enabled: Fraction,
    /// Only requests of which filters before said this.
    pub enabled_metadata: Option<MetadataMatcher>,
    /// Refuse what is not asked about. Default false.
    pub deny_at_disable: bool,
    /// Tell the client's certificate. Default false.
    pub peer_certificate: bool,
    /// Tell the TLS server name. Default false.
    pub tls_session: bool,
    /// Headers it is shown; `None`: all (gRPC), or only the few that every question has (HTTP).
    pub allowed_headers: Option<Vec<StringMatcher>>,
    /// Headers it is not shown.
    pub disallowed_headers: Vec<StringMatcher>,
    /// Namespaces of the request's metadata that it is told.
    pub metadata_spaces: Vec<Arc<str>>,
    /// Namespaces of the route's metadata that it is told.
    pub route_metadata_spaces: Vec<Arc<str>>,
    /// Ask, but refuse nothing: only what lets a request pass is done. Default false.
    pub shadow: bool,
    /// The most of its own body that a refused client gets, bytes; `None`: all.
    pub max_denied_body: Option<usize>,
}

/// Whom to ask.
#[derive(Debug)]
pub enum Service {
    /// Envoy's authorization protocol.
    Grpc(GrpcService),
    /// A request like the client's.
    Http(HttpService),
}

impl Service {
    /// The cluster that is asked.
    #[must_use]
    pub fn cluster(&self) -> &Arc<str> {
        match self {
            Self::Grpc(service) => &service.cluster,
            Self::Http(service) => &service.cluster,
        }
    }
}

/// A gRPC service.
#[derive(Debug)]
pub struct GrpcService {
    /// The cluster.
    pub cluster: Arc<str>,
    /// `:authority`.
    pub authority: Arc<str>,
    /// Limit for the answer; `None`: none.
    pub timeout: Option<Duration>,
    /// Further metadata of the call.
    pub metadata: Vec<(HeaderName, HeaderValue)>,
}

/// How the body is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodySettings {
    /// So many bytes.
    pub max_bytes: usize,
    /// Show the beginning of longer ones instead of refusing them (413).
    pub partial: bool,
    /// As bytes, not as text (gRPC).
    pub as_bytes: bool,
}

/// What a route says about the filter.
#[derive(Debug, Clone)]
pub enum ExtAuthzOverride {
    /// Nobody is asked.
    Disabled,
    /// Other settings.
    Settings(Arc<CheckSettings>),
}

/// Settings of a route.
#[derive(Debug, Default)]
pub struct CheckSettings {
    /// Told to the authorizer (gRPC).
    pub context: Vec<(Arc<str>, Arc<str>)>,
    /// Do not wait for the body.
    pub no_body: bool,
    /// Show the body in another way.
    pub body: Option<BodySettings>,
}

/// A question to an authorizer.
#[derive(Debug, Clone)]
pub struct Asking {
    /// Who asks.
    pub filter: Arc<ExtAuthz>,
    /// What the route says.
    pub settings: Option<Arc<CheckSettings>>,
}

/// The body as far as it has come.
#[derive(Debug, Clone, Default)]
pub struct BodyView {
    /// Its first bytes.
    pub bytes: Bytes,
    /// There is more.
    pub cut: bool,
}

/// A call to be made.
#[derive(Debug)]
pub struct Call {
    /// Where.
    pub cluster: Arc<str>,
    /// `:authority`.
    pub authority: String,
    /// Method.
    pub method: ::http::Method,
    /// Path and query.
    pub path: String,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// Limit for the whole call; `None`: none.
    pub timeout: Option<Duration>,
    /// It is gRPC.
    pub grpc: bool,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers; with trailers those too.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// What the answer means.
#[derive(Debug)]
pub enum Verdict {
    /// Let it pass, changed so.
    Allowed(Box<Changes>),
    /// Refuse it so.
    Denied(Box<LocalReply>),
    /// The authorizer failed.
    Error,
}

/// What an authorizer changes on a request that it lets pass.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// Headers to write, replacing what is there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Headers to add beside what is there.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Headers to take away.
    pub remove: Vec<HeaderName>,
    /// Query parameters to take away.
    pub remove_parameters: Vec<Arc<str>>,
    /// Query parameters to write.
    pub set_parameters: Vec<(String, String)>,
    /// Headers for the answer to the client.
    pub response: Vec<(HeaderName, HeaderValue)>,
    /// What filters behind are told.
    pub metadata: Option<Datum>,
}

/// Whether the authorizer is asked about a request.
#[derive(Debug)]
pub enum Asks {
    /// It is.
    Yes(Asking),
    /// It is not.
    No,
    /// It is not, and that is refused.
    Refuse(Box<LocalReply>),
}

impl ExtAuthz {
    /// Whether a request is asked about. `reports`: what the authorization filters before said.
    #[must_use]
    pub fn asks(
        self: &Arc<Self>,
        setting: Option<&ExtAuthzOverride>,
        facts: &Facts<'_>,
        reports: &[RbacReport],
        dice: &mut Dice,
    ) -> Asks {
        let settings = match setting {
            Some(ExtAuthzOverride::Disabled) => return Asks::No,
            Some(ExtAuthzOverride::Settings(settings)) => Some(settings.clone()),
            None => None,
        };
        let said = |matcher: &MetadataMatcher| match matcher.path.as_slice() {
            [key] => match rbac::noted(reports, &matcher.space, key) {
                Some(noted) => matcher.value.matches(Some(&noted)) != matcher.invert,
                None => matcher.matches(facts.metadata),
            },
            _ => matcher.matches(facts.metadata),
        };
        let enabled = dice.hits(self.enabled) && self.enabled_metadata.as_ref().is_none_or(said);
        match (enabled, self.deny_at_disable && !self.shadow) {
            (true, _) => Asks::Yes(Asking { filter: self.clone(), settings }),
            (false, true) => Asks::Refuse(Box::new(self.refusal("ext_authz_denied"))),
            (false, false) => Asks::No,
        }
    }

    /// What becomes of a request whose authorizer could not be asked.
    #[must_use]
    pub fn failed(&self) -> Verdict {
        if !self.failure_allow {
            return Verdict::Denied(Box::new(self.refusal("ext_authz_error")));
        }
        let mut changes = Changes::default();
        if self.failure_header {
            let name = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");
            changes.set.push((name, HeaderValue::from_static("true")));
        }
        Verdict::Allowed(Box::new(changes))
    }

    fn refusal(&self, details: &'static str) -> LocalReply {
        LocalReply::error(self.status_on_error, "", details, Flags::UNAUTHORIZED_EXTERNAL_SERVICE)
    }

    /// Whether a header is shown to the authorizer.
    fn shows(&self, name: &str) -> bool {
        let listed = |list: &[StringMatcher]| list.iter().any(|matcher| matcher.matches(name));
        let allowed = match (&self.allowed_headers, &self.service) {
            (Some(list), _) => listed(list),
            (None, Service::Grpc(_)) => true,
            (None, Service::Http(_)) => false,
        };
        allowed && !listed(&self.disallowed_headers)
    }

    /// A refusal by the authorizer itself.
    fn denied(&self, status: StatusCode, headers: Vec<(HeaderName, HeaderValue)>, body: Bytes) -> Verdict {
        let details = "ext_authz_denied";
        let mut reply = LocalReply::error(status, "", details, Flags::UNAUTHORIZED_EXTERNAL_SERVICE);
        reply.headers = headers;
        reply.body = self.max_denied_body.map_or_else(|| body.clone(), |most| body.slice(..most.min(body.len())));
        Verdict::Denied(Box::new(reply))
    }
}

impl Asking {
    /// How much of the body is shown; `None`: nothing.
    #[must_use]
    pub fn body(&self) -> Option<BodySettings> {
        let settings = self.settings.as_deref();
        if settings.is_some_and(|settings| settings.no_body) {
            return None;
        }
        // Whether as bytes or as text is the filter's own matter, as in Envoy.
        let as_bytes = self.filter.body.is_some_and(|body| body.as_bytes);
        let own = settings.and_then(|settings| settings.body).map(|body| BodySettings { as_bytes, ..body });
        own.or(self.filter.body)
    }

    /// The call that asks.
    #[must_use]
    pub fn call(&self, facts: &Facts<'_>, route: Option<&Metadata>, body: Option<&BodyView>) -> Call {
        match &self.filter.service {
            Service::Grpc(service) => grpc::call(self, service, facts, route, body),
            Service::Http(service) => http::call(&self.filter, service, facts, body),
        }
    }

    /// What an answer means.
    #[must_use]
    pub fn understand(&self, answer: &Answer) -> Verdict {
        match &self.filter.service {
            Service::Grpc(_) => grpc::understand(&self.filter, answer),
            Service::Http(service) => http::understand(&self.filter, service, answer),
        }
    }
}

impl Changes {
    /// Changes a request.
    pub(crate) fn apply(&self, changed: &mut Changed, path: &str) {
        for name in &self.remove {
            changed.headers.remove(name);
        }
        for (name, value) in &self.set {
            changed.headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            changed.headers.append(name, value.clone());
        }
        if !self.remove_parameters.is_empty() || !self.set_parameters.is_empty() {
            let old = changed.path.as_deref().unwrap_or(path);
            changed.path = Some(http::with_parameters(old, &self.remove_parameters, &self.set_parameters));
        }
        if let Some(metadata) = &self.metadata {
            changed.metadata.set(SPACE, metadata.clone());
        }
    }

    /// Whether something of the request changes that a route may look at.
    pub(crate) fn touches_request(&self) -> bool {
        !(self.set.is_empty()
            && self.add.is_empty()
            && self.remove.is_empty()
            && self.remove_parameters.is_empty()
            && self.set_parameters.is_empty())
    }
}

/// A header that an authorizer may change: no pseudo-header and not the host.
fn changeable(name: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    (name != ::http::header::HOST).then_some(name)
}
