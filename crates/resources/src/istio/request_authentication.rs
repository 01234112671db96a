//! RequestAuthentication.

use std::net::IpAddr;
use std::time::Duration;

use model::Declaration;
use model::security::{JwtKeys, JwtRule, KeysUri, RequestAuthentication};

use super::{headers, selector};
use crate::document::Subject;
use crate::field::{Field, Object};
use crate::node::Value;
use crate::{codes, names, yaml};

/// Istio's limit for fetching keys.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Kinds of keys (RFC 7518 section 6.1, RFC 8037).
const KEY_KINDS: &[&str] = &["RSA", "EC", "OKP", "oct"];
/// Names under which clouds serve their machines' secrets.
const METADATA_HOSTS: &[&str] =
    &["metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"];

/// Lowers a RequestAuthentication.
pub(crate) fn read(spec: &Object<'_>, subject: &Subject<'_>) -> Vec<Declaration> {
    for target in spec.given(&["targetRef", "targetRefs"]) {
        if let Some(selector) = spec.get("selector") {
            target
                .error_at_key(codes::EXCLUSIVE, format!("`selector` and `{}` exclude each other", target.name()))
                .also(selector.key_span(), "given here as well");
        }
    }
    spec.refuse("targetRef", "policies are attached to workloads by selector");
    spec.refuse("targetRefs", "policies are attached to workloads by selector");
    let rules = spec.get("jwtRules").map(|field| field.items()).unwrap_or_default();
    vec![Declaration::RequestAuthentication(RequestAuthentication {
        namespace: subject.namespace(),
        selector: selector(spec, "selector", "matchLabels"),
        rules: rules.iter().map(rule).collect(),
        origin: subject.origin.clone(),
    })]
}

fn rule(field: &Field<'_>) -> JwtRule {
    let object = field.object();
    object.refuse("presence", "an AuthorizationPolicy with requestPrincipals says that a token is needed");
    let texts = |name| object.get(name).map(|field| field.filled_texts()).unwrap_or_default();
    let headers = object.get("fromHeaders").map(|field| field.items()).unwrap_or_default();
    let claims = object.get("outputClaimToHeaders").map(|field| field.items()).unwrap_or_default();
    JwtRule {
        issuer: object.need("issuer").map(|field| field.filled()).unwrap_or_default(),
        audiences: texts("audiences"),
        keys: keys(&object),
        from_headers: headers.iter().map(from_header).collect(),
        from_params: texts("fromParams"),
        from_cookies: texts("fromCookies"),
        payload_header: object.get("outputPayloadToHeader").map(|field| headers::name(&field)),
        claim_headers: claims.iter().map(claim_header).collect(),
        forward: object.get("forwardOriginalToken").is_some_and(|field| field.boolean()),
        timeout: object.get("timeout").map_or(TIMEOUT, |field| field.positive_duration()),
        spaced_claims: texts("spaceDelimitedClaims"),
        origin: field.origin(),
    }
}

fn from_header(field: &Field<'_>) -> (String, String) {
    let object = field.object();
    let name = object.need("name").map(|field| headers::name(&field)).unwrap_or_default();
    (name, object.get("prefix").map(|field| field.text()).unwrap_or_default())
}

fn claim_header(field: &Field<'_>) -> (String, String) {
    let object = field.object();
    let name = object.need("header").map(|field| headers::name(&field)).unwrap_or_default();
    (name, object.need("claim").map(|field| field.filled()).unwrap_or_default())
}

fn keys(object: &Object<'_>) -> JwtKeys {
    // The old spelling is still in use.
    object.at_most_one(&["jwks", "jwksUri", "jwks_uri"]);
    if let Some(field) = object.get("jwks") {
        let text = field.filled();
        if !text.is_empty() && !is_key_set(&text) {
            field
                .error(codes::KEY_SET, "`jwks` is no key set with a key of a kind that is known")
                .help("a key set is JSON: {\"keys\": [{\"kty\": ...}]}");
        }
        return JwtKeys::Inline(text);
    }
    if let Some(field) = object.get("jwksUri").or_else(|| object.get("jwks_uri")) {
        return uri(&field).map_or(JwtKeys::Unknown, JwtKeys::Remote);
    }
    object
        .field
        .warn(codes::KEY_SET, "neither `jwks` nor `jwksUri` is given: every token of this issuer is refused")
        .help("give `jwksUri`; it is not looked up at the issuer");
    JwtKeys::Unknown
}

fn is_key_set(text: &str) -> bool {
    match yaml::documents(text).as_slice() {
        [Ok(node)] => match node.entry("keys").map(|keys| &keys.node.value) {
            Some(Value::List(keys)) => {
                keys.iter().any(|key| key.text("kty").is_some_and(|kty| KEY_KINDS.contains(&kty)))
            }
            _ => false,
        },
        _ => false,
    }
}

fn uri(field: &Field<'_>) -> Option<KeysUri> {
    let text = field.filled();
    let (tls, rest) = match text.split_once("://") {
        Some(("https", rest)) => (true, rest),
        Some(("http", rest)) => (false, rest),
        _ if names::is_placeholder(&text) => return None,
        _ => {
            field.error(codes::KEY_SET, format!("`{text}` is no URI of a key set")).help("it begins with https://");
            return None;
        }
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse::<u16>().ok()),
        _ => (authority, Some(if tls { 443 } else { 80 })),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let port = port.filter(|port| *port > 0);
    if host.is_empty() || authority.contains('@') || port.is_none() {
        field.error(codes::KEY_SET, format!("`{text}` names no host and port"));
        return None;
    }
    if !may_be_asked(host) {
        field
            .error(
                codes::KEY_SET,
                format!("keys are not fetched from {host}: it is the machine itself or its metadata"),
            )
            .help("name the server by its host name");
    }
    Some(KeysUri { tls, host: host.to_ascii_lowercase(), port: port?, uri: text })
}

/// Not the machine itself, not a link-local address, not a cloud's metadata: a policy must not make proxies ask there.
fn may_be_asked(host: &str) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    if name == "localhost" || name.ends_with(".localhost") || METADATA_HOSTS.contains(&name.as_str()) {
        return false;
    }
    match name.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(IpAddr::V4(ip)) => !(ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast()),
        Ok(IpAddr::V6(ip)) => {
            let metadata = ip.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254];
            !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast() || metadata)
        }
        // What ends in a number is an address in another notation to some resolvers.
        Err(_) => {
            let last = name.rsplit('.').next().unwrap_or_default();
            !last.starts_with("0x") && !last.bytes().all(|b| b.is_ascii_digit())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_fetched_from_inside_the_machine() {
        for host in ["issuer.test", "10.1.2.3", "keys.shop.svc.cluster.local", "192.0.2.1", "2001:db8::1"] {
            assert!(may_be_asked(host), "{host}");
        }
        for host in [
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0.0.0.0",
            "169.254.169.254",
            "::1",
            "::ffff:127.0.0.1",
            "fe80::1",
            "metadata.google.internal",
            "fd00:ec2::254",
        ] {
            assert!(!may_be_asked(host), "{host}");
        }
    }
}
