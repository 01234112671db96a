//! Cross-origin requests: the preflight answer and the headers on actual responses.

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    ORIGIN,
};
use http::{HeaderName, HeaderValue, StatusCode};

use crate::dice::{Dice, Fraction};
use crate::facts::Facts;
use crate::matcher::StringMatcher;
use crate::reply::{Flags, LocalReply};

const REQUEST_PRIVATE_NETWORK: &str = "access-control-request-private-network";
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");
const TRUE: HeaderValue = HeaderValue::from_static("true");

/// The filter itself has no settings; policies come with the routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CorsFilter;

/// What other origins may do (`envoy.extensions.filters.http.cors.v3.CorsPolicy`).
#[derive(Debug, Clone, PartialEq)]
pub struct CorsPolicy {
    /// Origins that may.
    pub origins: Vec<StringMatcher>,
    /// `access-control-allow-methods`
    pub allow_methods: Option<HeaderValue>,
    /// `access-control-allow-headers`
    pub allow_headers: Option<HeaderValue>,
    /// `access-control-expose-headers`
    pub expose_headers: Option<HeaderValue>,
    /// `access-control-max-age`
    pub max_age: Option<HeaderValue>,
    /// `access-control-allow-credentials: true`
    pub allow_credentials: bool,
    /// Answer `access-control-request-private-network`.
    pub allow_private_network: bool,
    /// The share of requests it is enforced for. Default always.
    pub enabled: Fraction,
    /// The share it only counts for, when not enforced. Default never.
    pub shadow: Fraction,
    /// Preflights from other origins go to the upstream (true, the default) or are answered without CORS headers.
    pub forward_not_matching: bool,
}

type Headers = Vec<(HeaderName, HeaderValue)>;

/// What CORS makes of a request.
#[derive(Debug)]
pub(crate) enum Cors {
    /// Nothing.
    Pass,
    /// Headers for the response.
    Actual(Headers),
    /// The answer to a preflight.
    Preflight(Box<LocalReply>),
}

impl CorsPolicy {
    pub(crate) fn judge(&self, facts: &Facts<'_>, dice: &mut Dice) -> Cors {
        let Some(origin) = facts.headers.get(ORIGIN).filter(|origin| !origin.is_empty()) else {
            return Cors::Pass;
        };
        if !dice.hits(self.enabled) {
            return Cors::Pass;
        }
        let allowed = self.allows(origin);
        let preflight = facts.method == "OPTIONS" && facts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        match (preflight, allowed) {
            (false, false) => Cors::Pass,
            (false, true) => Cors::Actual(self.actual_headers(origin)),
            (true, false) if self.forward_not_matching => Cors::Pass,
            (true, false) => Cors::Preflight(Box::new(answer(Vec::new()))),
            (true, true) => Cors::Preflight(Box::new(answer(self.preflight_headers(origin, facts)))),
        }
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        self.origins.iter().any(|rule| rule.matches_bytes(b"*") || rule.matches_bytes(origin.as_bytes()))
    }

    fn actual_headers(&self, origin: &HeaderValue) -> Headers {
        let mut headers = vec![(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone())];
        headers.extend(self.allow_credentials.then_some((ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE)));
        headers.extend(self.expose_headers.clone().map(|value| (ACCESS_CONTROL_EXPOSE_HEADERS, value)));
        headers
    }

    fn preflight_headers(&self, origin: &HeaderValue, facts: &Facts<'_>) -> Headers {
        let mut headers = vec![(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone())];
        headers.extend(self.allow_credentials.then_some((ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE)));
        let asks = facts.headers.get(REQUEST_PRIVATE_NETWORK).is_some_and(|value| value == "true");
        headers.extend((asks && self.allow_private_network).then_some((ALLOW_PRIVATE_NETWORK, TRUE)));
        headers.extend(self.allow_methods.clone().map(|value| (ACCESS_CONTROL_ALLOW_METHODS, value)));
        headers.extend(self.allow_headers.clone().map(|value| (ACCESS_CONTROL_ALLOW_HEADERS, value)));
        headers.extend(self.max_age.clone().map(|value| (ACCESS_CONTROL_MAX_AGE, value)));
        headers
    }
}

fn answer(headers: Headers) -> LocalReply {
    LocalReply {
        status: StatusCode::OK,
        body: Bytes::new(),
        format: None,
        headers,
        details: "cors_response".into(),
        flags: Flags::NONE,
        grpc_status: None,
        origin: None,
        is_error: false,
    }
}
