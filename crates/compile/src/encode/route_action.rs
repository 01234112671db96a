//! Retries, header changes, redirects, mirrors: the parts of a route's action that need no lookup in the mesh.

use std::time::Duration;

use model::destination::HashOn;
use model::matching::StringMatch;
use model::route::{
    AbortWith, CorsPolicy as CorsRule, Fault, HeaderChanges, HeaderOps, Redirect, RedirectPort,
    RetryPolicy as RetryRule,
};
use proto::envoy::config::core::v3::{
    DataSource, HeaderValue, HeaderValueOption, RuntimeFractionalPercent, data_source::Specifier,
    header_value_option::HeaderAppendAction,
};
use proto::envoy::config::route::v3::{
    DirectResponseAction, RedirectAction, RetryPolicy,
    redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
    retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate},
    route_action::{HashPolicy, hash_policy},
};
use proto::envoy::extensions::filters::common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier};
use proto::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use proto::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType};
use proto::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use proto::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};

use super::{route_match, wire};

/// What Istio retries when nobody says otherwise: only what surely did no work.
const DEFAULT_RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
/// Attempts after the first, by Istio's default.
const DEFAULT_RETRIES: u32 = 2;
/// How often another host is looked for before a tried one is taken again: of two hosts the other is found with certainty
/// enough (Istio's 5 misses it once in 64 times).
const HOST_ATTEMPTS: i64 = 20;

/// Retries of a rule, or of the mesh, or Istio's; `None` where they are switched off. Localities have no priorities
/// here, so every retry may go to any of them, whatever `retryRemoteLocalities` says.
pub(crate) fn retries(rule: Option<&RetryRule>, mesh: Option<&RetryRule>) -> Option<RetryPolicy> {
    let Some(wanted) = rule.or(mesh) else {
        return Some(RetryPolicy {
            retry_on: DEFAULT_RETRY_ON.to_owned(),
            num_retries: wire::uint32(DEFAULT_RETRIES),
            retry_host_predicate: vec![previous_hosts()],
            host_selection_retry_max_attempts: HOST_ATTEMPTS,
            ..RetryPolicy::default()
        });
    };
    if wanted.attempts == 0 {
        return None;
    }
    let (retry_on, retriable_status_codes) = retry_words(&wanted.retry_on);
    let avoid = wanted.ignore_previous_hosts.unwrap_or(true);
    Some(RetryPolicy {
        retry_on,
        retriable_status_codes,
        num_retries: wire::uint32(wanted.attempts),
        per_try_timeout: wanted.per_try_timeout.filter(|time| !time.is_zero()).and_then(wire::duration),
        retry_back_off: wanted.backoff.filter(|time| !time.is_zero()).map(|base| RetryBackOff {
            base_interval: wire::duration(base),
            max_interval: wire::duration(base.saturating_mul(10)),
        }),
        retry_host_predicate: if avoid { vec![previous_hosts()] } else { Vec::new() },
        host_selection_retry_max_attempts: if avoid { HOST_ATTEMPTS } else { 0 },
        ..RetryPolicy::default()
    })
}

/// Numbers among the words are status codes.
fn retry_words(words: &[String]) -> (String, Vec<u32>) {
    if words.is_empty() {
        return (DEFAULT_RETRY_ON.to_owned(), Vec::new());
    }
    let mut codes = Vec::new();
    let mut kept: Vec<&str> = Vec::new();
    for word in words {
        match word.trim().parse::<u32>() {
            Ok(code) => codes.push(code),
            Err(_) => kept.push(word.trim()),
        }
    }
    const BY_CODE: &str = "retriable-status-codes";
    if !codes.is_empty() && !kept.contains(&BY_CODE) {
        kept.push(BY_CODE);
    }
    (kept.join(","), codes)
}

fn previous_hosts() -> RetryHostPredicate {
    RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(wire::any(
            &PreviousHostsPredicate {},
            &wire::FLAT,
        ))),
    }
}

/// Header changes in the four lists of routes and weighted clusters, and the authority where one is set.
#[derive(Debug, Default)]
pub(crate) struct Headers {
    pub(crate) request_add: Vec<HeaderValueOption>,
    pub(crate) request_remove: Vec<String>,
    pub(crate) response_add: Vec<HeaderValueOption>,
    pub(crate) response_remove: Vec<String>,
    pub(crate) authority: Option<String>,
}

impl Headers {
    /// The changes in order: what comes later acts on what came before.
    pub(crate) fn of<'o>(changes: impl IntoIterator<Item = &'o HeaderOps>) -> Self {
        let mut headers = Self::default();
        for ops in changes {
            headers.authority = authority(&ops.request).or(headers.authority);
            headers.request_add.extend(additions(&ops.request));
            headers.request_remove.extend(ops.request.remove.iter().filter(|name| !is_authority(name)).cloned());
            headers.response_add.extend(additions(&ops.response));
            headers.response_remove.extend(ops.response.remove.iter().cloned());
        }
        headers
    }
}

fn authority(changes: &HeaderChanges) -> Option<String> {
    changes.set.iter().chain(&changes.add).find(|(name, _)| is_authority(name)).map(|(_, value)| value.clone())
}

/// The authority is not an ordinary header: it is rewritten, never added.
fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name == ":authority"
}

fn additions(changes: &HeaderChanges) -> impl Iterator<Item = HeaderValueOption> {
    let option = |action: HeaderAppendAction| {
        move |(name, value): &(String, String)| HeaderValueOption {
            header: Some(HeaderValue { key: name.clone(), value: escaped(value), ..HeaderValue::default() }),
            append_action: action.into(),
            keep_empty_value: value.is_empty(),
            ..HeaderValueOption::default()
        }
    };
    let set = changes.set.iter().map(option(HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = changes.add.iter().map(option(HeaderAppendAction::AppendIfExistsOrAdd));
    set.chain(add).filter(|option| option.header.as_ref().is_some_and(|header| !is_authority(&header.key)))
}

/// A `%` that begins no Envoy command is doubled: alone it would make Envoy refuse the whole resource.
fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('%') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let tail = from.get(1..).unwrap_or_default();
        let command = match tail.strip_prefix('%') {
            Some(_) => Some(1),
            None => tail.find('%').filter(|end| is_command(tail.get(..*end).unwrap_or_default())).map(|end| end + 1),
        };
        match command {
            Some(length) => {
                out.push_str(from.get(..=length).unwrap_or_default());
                rest = tail.get(length..).unwrap_or_default();
            }
            None => {
                out.push_str("%%");
                rest = tail;
            }
        }
    }
    out + rest
}

fn is_command(text: &str) -> bool {
    let name = text.split(['(', ':']).next().unwrap_or_default();
    !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

/// A share in millionths.
pub(crate) fn share(millionths: u32) -> FractionalPercent {
    FractionalPercent { numerator: millionths.min(1_000_000), denominator: DenominatorType::Million.into() }
}

/// A share in millionths that no runtime key overrides.
pub(crate) fn runtime_share(millionths: u32) -> Option<RuntimeFractionalPercent> {
    Some(RuntimeFractionalPercent { default_value: Some(share(millionths)), ..RuntimeFractionalPercent::default() })
}

/// A redirect; `listener_port` is the port the request was sent to.
pub(crate) fn redirect(wanted: &Redirect, listener_port: u16) -> RedirectAction {
    let port = match wanted.port {
        Some(RedirectPort::Number(port)) => u32::from(port),
        Some(RedirectPort::FromRequestPort) => u32::from(listener_port),
        Some(RedirectPort::FromProtocolDefault) => match wanted.scheme.as_deref() {
            Some("https") => 443,
            Some("http") => 80,
            _ => 0,
        },
        None => 0,
    };
    let path = wanted.uri.as_ref().map(|uri| match uri.strip_prefix("%PREFIX()%") {
        Some(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix.to_owned()),
        None => PathRewriteSpecifier::PathRedirect(uri.clone()),
    });
    RedirectAction {
        host_redirect: wanted.authority.clone().unwrap_or_default(),
        port_redirect: port,
        scheme_rewrite_specifier: wanted.scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: path,
        response_code: redirect_code(wanted.code).into(),
        ..RedirectAction::default()
    }
}

fn redirect_code(code: u16) -> RedirectResponseCode {
    match code {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    }
}

/// An answer of the proxy's own.
pub(crate) fn direct_response(status: u16, body: Option<&[u8]>) -> DirectResponseAction {
    let specifier = |body: &[u8]| match std::str::from_utf8(body) {
        Ok(text) => Specifier::InlineString(text.to_owned()),
        Err(_) => Specifier::InlineBytes(body.to_vec()),
    };
    DirectResponseAction {
        status: u32::from(status),
        body: body.map(|body| DataSource { specifier: Some(specifier(body)), ..DataSource::default() }),
        ..DirectResponseAction::default()
    }
}

/// Injected faults.
pub(crate) fn fault(wanted: &Fault) -> HttpFault {
    HttpFault {
        delay: wanted.delay.as_ref().map(|delay| FaultDelay {
            percentage: Some(share(delay.millionths)),
            // Envoy wants a delay above zero.
            fault_delay_secifier: wire::duration(delay.fixed.max(Duration::from_nanos(1_000_000)))
                .map(FaultDelaySecifier::FixedDelay),
        }),
        abort: wanted.abort.as_ref().map(|abort| FaultAbort {
            percentage: Some(share(abort.millionths)),
            error_type: Some(match abort.with {
                AbortWith::Http(status) => ErrorType::HttpStatus(u32::from(status)),
                AbortWith::Grpc(status) => ErrorType::GrpcStatus(status),
            }),
            ..FaultAbort::default()
        }),
        ..HttpFault::default()
    }
}

/// Cross-origin rules.
pub(crate) fn cors(wanted: &CorsRule) -> CorsPolicy {
    let origins = wanted.allow_origins.iter().map(|origin| match origin {
        StringMatch::Exact(any) if any == "*" => route_match::string(&StringMatch::Regex(".*".to_owned())),
        other => route_match::string(other),
    });
    CorsPolicy {
        allow_origin_string_match: origins.collect(),
        allow_methods: wanted.allow_methods.join(","),
        allow_headers: wanted.allow_headers.join(","),
        expose_headers: wanted.expose_headers.join(","),
        max_age: wanted.max_age.map(|age| age.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: wanted.allow_credentials.and_then(wire::boolean),
        filter_enabled: runtime_share(1_000_000),
        forward_not_matching_preflights: wanted.forward_unmatched_preflights.and_then(wire::boolean),
        ..CorsPolicy::default()
    }
}

/// What a consistent-hash balancer looks at.
pub(crate) fn hash_policy(on: &HashOn) -> HashPolicy {
    use hash_policy::{ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter};
    let specifier = match on {
        HashOn::Header(name) => PolicySpecifier::Header(Header { header_name: name.clone(), ..Header::default() }),
        HashOn::Cookie { name, path, ttl, attributes } => PolicySpecifier::Cookie(Cookie {
            name: name.clone(),
            path: path.clone(),
            ttl: ttl.and_then(wire::duration),
            attributes: attributes
                .iter()
                .map(|(name, value)| CookieAttribute { name: name.clone(), value: value.clone() })
                .collect(),
        }),
        HashOn::SourceIp => PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }),
        HashOn::QueryParameter(name) => PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() }),
    };
    HashPolicy { policy_specifier: Some(specifier), ..HashPolicy::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_stay_and_other_percent_signs_are_doubled() {
        assert_eq!(escaped("%DOWNSTREAM_REMOTE_ADDRESS%"), "%DOWNSTREAM_REMOTE_ADDRESS%");
        assert_eq!(escaped("%REQ(x-a:y)% and 100%"), "%REQ(x-a:y)% and 100%%");
        assert_eq!(escaped("50% of %%"), "50%% of %%");
        assert_eq!(escaped("100%é%"), "100%%é%%");
        assert_eq!(escaped(""), "");
    }

    #[test]
    fn numbers_among_retry_words_are_status_codes() {
        let words = ["5xx", " 429", "reset"].map(str::to_owned);
        assert_eq!(retry_words(&words), ("5xx,reset,retriable-status-codes".to_owned(), vec![429]));
        assert_eq!(retry_words(&[]).0, DEFAULT_RETRY_ON);
    }

    #[test]
    fn no_attempts_means_no_retries() {
        let none = RetryRule {
            attempts: 0,
            per_try_timeout: None,
            retry_on: Vec::new(),
            retry_remote_localities: None,
            backoff: None,
            ignore_previous_hosts: None,
        };
        assert_eq!(retries(Some(&none), None), None);
        assert_eq!(retries(None, None).unwrap().num_retries.unwrap().value, 2);
    }
}
