//! Cross-origin requests: the preflight answer and the headers on actual responses.

use http::HeaderValue;

use crate::dice::Fraction;
use crate::matcher::StringMatcher;

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
