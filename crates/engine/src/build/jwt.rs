//! The token filter and what routes say about it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use proto::envoy::config::core::v3 as core;
use proto::envoy::extensions::filters::http::jwt_authn::v3 as xds;
use proto::google::protobuf::Any;

use super::value::{header_name, inline_bytes, string};
use super::{Context, number, route};
use crate::jwt::{
    Audiences, JwtAuthn, JwtOverride, KeySet, Keys, Location, Provider, RemoteKeys, RemoteSource, Requirement,
};
use crate::routes::RouteMatch;

/// Envoy's default for `clock_skew_seconds`.
const CLOCK_SKEW: u64 = 60;
/// Envoy's default for `cache_duration`.
const CACHE: Duration = Duration::from_secs(600);

type Providers = Vec<Arc<Provider>>;

pub(super) fn filter(cx: &mut Context<'_>, any: &Any) -> Option<JwtAuthn> {
    let message: xds::JwtAuthentication = cx.unpack(any)?;
    let providers: Providers = sorted(&message.providers)
        .filter_map(|(name, message)| cx.key("providers", name, |cx| provider(cx, name, message)).map(Arc::new))
        .collect();
    if providers.len() != message.providers.len() {
        return None;
    }
    let named: Vec<(Arc<str>, Arc<Requirement>)> = sorted(&message.requirement_map)
        .filter_map(|(name, message)| {
            let built = cx.key("requirement_map", name, |cx| requirement(cx, message, &providers))?;
            Some((cx.share(name), Arc::new(built)))
        })
        .collect();
    let rules = cx.list("rules", &message.rules, |cx, message| rule(cx, message, &providers, &named));
    Some(JwtAuthn {
        rules,
        named,
        providers,
        bypass_preflight: message.bypass_cors_preflight,
        strip_failure: message.strip_failure_response,
    })
}

pub(super) fn route(cx: &mut Context<'_>, any: &Any) -> Option<JwtOverride> {
    use xds::per_route_config::RequirementSpecifier as Kind;
    let message: xds::PerRouteConfig = cx.unpack(any)?;
    match message.requirement_specifier {
        Some(Kind::Disabled(true)) => Some(JwtOverride::Disabled),
        Some(Kind::Disabled(false)) => cx.field("disabled", |cx| cx.refuse("must be true")),
        Some(Kind::RequirementName(name)) => cx.needed("requirement_name", &name).map(JwtOverride::Named),
        None => cx.refuse("disabled or requirement_name is required"),
    }
}

fn sorted<M>(messages: &HashMap<String, M>) -> impl Iterator<Item = (&String, &M)> {
    let mut all: Vec<_> = messages.iter().collect();
    all.sort_by_key(|(name, _)| *name);
    all.into_iter()
}

fn rule(
    cx: &mut Context<'_>,
    message: &xds::RequirementRule,
    providers: &Providers,
    named: &[(Arc<str>, Arc<Requirement>)],
) -> Option<(RouteMatch, Option<Arc<Requirement>>)> {
    use xds::requirement_rule::RequirementType as Kind;
    let matched = cx.required("match", message.r#match.as_ref(), route::route_match)?;
    let needed = match &message.requirement_type {
        None => None,
        Some(Kind::Requires(message)) => {
            Some(Arc::new(cx.field("requires", |cx| requirement(cx, message, providers))?))
        }
        Some(Kind::RequirementName(name)) => match named.iter().find(|(known, _)| **known == **name) {
            Some((_, requirement)) => Some(requirement.clone()),
            None => {
                return cx.field("requirement_name", |cx| cx.refuse(format!("{name:?} is not in requirement_map")));
            }
        },
    };
    Some((matched, needed))
}

fn requirement(cx: &mut Context<'_>, message: &xds::JwtRequirement, providers: &Providers) -> Option<Requirement> {
    use xds::jwt_requirement::RequiresType as Kind;
    Some(match &message.requires_type {
        None => Requirement::Nothing,
        Some(Kind::ProviderName(name)) => {
            Requirement::Provider(cx.field("provider_name", |cx| named(cx, name, providers))?, None)
        }
        Some(Kind::ProviderAndAudiences(message)) => cx.field("provider_and_audiences", |cx| {
            let provider = cx.field("provider_name", |cx| named(cx, &message.provider_name, providers))?;
            let audiences = (!message.audiences.is_empty()).then(|| audiences(cx, &message.audiences));
            Some(Requirement::Provider(provider, audiences))
        })?,
        Some(Kind::RequiresAny(message)) => cx.field("requires_any", |cx| any_of(cx, message, providers))?,
        Some(Kind::RequiresAll(message)) => cx
            .field("requires_all", |cx| {
                let all = cx.list("requirements", &message.requirements, |cx, one| requirement(cx, one, providers));
                if message.requirements.len() < 2 { cx.refuse("at least two are required") } else { Some(all) }
            })
            .map(Requirement::All)?,
        Some(Kind::AllowMissingOrFailed(_)) => Requirement::AllowMissingOrFailed(providers.clone()),
        Some(Kind::AllowMissing(_)) => Requirement::AllowMissing(providers.clone()),
        Some(Kind::ExtractOnlyWithoutValidation(_)) => {
            return cx.field("extract_only_without_validation", |cx| {
                cx.refuse("claims that nobody vouches for are not handed on")
            });
        }
    })
}

fn any_of(cx: &mut Context<'_>, message: &xds::JwtRequirementOrList, providers: &Providers) -> Option<Requirement> {
    use xds::jwt_requirement::RequiresType as Kind;
    if message.requirements.len() < 2 {
        return cx.refuse("at least two are required");
    }
    let (mut missing, mut failed) = (false, false);
    let of = cx.list("requirements", &message.requirements, |cx, one| match &one.requires_type {
        Some(Kind::AllowMissing(_)) => {
            missing = true;
            None
        }
        Some(Kind::AllowMissingOrFailed(_)) => {
            failed = true;
            None
        }
        _ => requirement(cx, one, providers),
    });
    Some(match (of.is_empty(), failed) {
        (true, true) => Requirement::AllowMissingOrFailed(providers.clone()),
        (true, false) => Requirement::AllowMissing(providers.clone()),
        (false, _) => Requirement::Any { of, missing, failed },
    })
}

fn named(cx: &mut Context<'_>, name: &str, providers: &Providers) -> Option<Arc<Provider>> {
    let found = providers.iter().find(|provider| *provider.name == *name).cloned();
    found.or_else(|| cx.refuse(format!("there is no provider {name:?}")))
}

fn audiences(cx: &mut Context<'_>, names: &[String]) -> Audiences {
    Audiences::new(names.iter().map(|name| cx.share(name)).collect::<Vec<_>>())
}

fn provider(cx: &mut Context<'_>, name: &str, message: &xds::JwtProvider) -> Option<Provider> {
    let keys = keys(cx, message);
    let subjects = match &message.subjects {
        Some(matcher) => Some(cx.field("subjects", |cx| string(cx, matcher))?),
        None => None,
    };
    let payload_header = match message.forward_payload_header.as_str() {
        "" => None,
        name => {
            let name = cx.field("forward_payload_header", |cx| header_name(cx, name))?;
            Some((name, message.pad_forward_payload_header))
        }
    };
    let claim_headers = cx.list("claim_to_headers", &message.claim_to_headers, claim_header);
    Some(Provider {
        name: cx.share(name),
        issuer: cx.text(&message.issuer),
        audiences: audiences(cx, &message.audiences),
        subjects,
        require_expiration: message.require_expiration,
        max_lifetime: cx.duration("max_lifetime", message.max_lifetime.as_ref()),
        keys: keys?,
        forward: message.forward,
        locations: locations(cx, message)?,
        payload_header,
        claim_headers,
        payload_in_metadata: cx.text(&message.payload_in_metadata),
        spaced_claims: message
            .normalize_payload_in_metadata
            .iter()
            .flat_map(|normal| &normal.space_delimited_claims)
            .map(|claim| cx.share(claim))
            .collect(),
        header_in_metadata: cx.text(&message.header_in_metadata),
        failure_in_metadata: cx.text(&message.failed_status_in_metadata),
        skew: match message.clock_skew_seconds {
            0 => CLOCK_SKEW,
            seconds => u64::from(seconds),
        },
        clear_route: message.clear_route_cache,
    })
}

fn locations(cx: &mut Context<'_>, message: &xds::JwtProvider) -> Option<Vec<Location>> {
    let headers = cx.list("from_headers", &message.from_headers, |cx, header| {
        let name = cx.field("name", |cx| header_name(cx, &header.name))?;
        Some(Location::Header(name, cx.share(&header.value_prefix)))
    });
    if headers.len() != message.from_headers.len() {
        return None;
    }
    let mut all = headers;
    all.extend(message.from_params.iter().map(|name| Location::Parameter(cx.share(name))));
    all.extend(message.from_cookies.iter().map(|name| Location::Cookie(cx.share(name))));
    if all.is_empty() {
        all.push(Location::Header(http::header::AUTHORIZATION, cx.share("Bearer ")));
        all.push(Location::Parameter(cx.share("access_token")));
    }
    all.sort_by(|one, other| one.rank().cmp(&other.rank()));
    all.dedup();
    Some(all)
}

fn claim_header(cx: &mut Context<'_>, message: &xds::JwtClaimToHeader) -> Option<(HeaderName, Vec<Arc<str>>)> {
    let name = cx.field("header_name", |cx| header_name(cx, &message.header_name))?;
    let path: Vec<Arc<str>> = if message.claim_path.is_empty() {
        // A dot leads into an object.
        message.claim_name.split('.').map(|key| cx.share(key)).collect()
    } else {
        cx.list("claim_path", &message.claim_path, |cx, segment| cx.needed("key", &segment.key))
    };
    if path.iter().any(|key| key.is_empty()) {
        return cx.field("claim_name", |cx| cx.refuse("must not be empty"));
    }
    Some((name, path))
}

fn keys(cx: &mut Context<'_>, message: &xds::JwtProvider) -> Option<Keys> {
    use xds::jwt_provider::JwksSourceSpecifier as Kind;
    match &message.jwks_source_specifier {
        Some(Kind::LocalJwks(source)) => {
            let bytes = cx.field("local_jwks", |cx| inline_bytes(cx, source))?;
            match KeySet::parse(&bytes) {
                Ok(keys) => Some(Keys::Local(Arc::new(keys))),
                Err(why) => cx.field("local_jwks", |cx| cx.refuse(why)),
            }
        }
        Some(Kind::RemoteJwks(message)) => cx.field("remote_jwks", |cx| remote(cx, message)).map(Keys::Remote),
        None => cx.refuse("local_jwks or remote_jwks is required"),
    }
}

fn remote(cx: &mut Context<'_>, message: &xds::RemoteJwks) -> Option<Arc<RemoteKeys>> {
    let source = cx.required("http_uri", message.http_uri.as_ref(), http_uri)?;
    let cache = cx.duration("cache_duration", message.cache_duration.as_ref()).unwrap_or(CACHE);
    let retries = message.retry_policy.as_ref().map_or(0, |policy| number(policy.num_retries.as_ref(), 1));
    Some(cx.remote_keys(RemoteSource { cache, retries, ahead: message.async_fetch.is_some(), ..source }))
}

/// Cluster, authority, path and time limit of a URI.
fn http_uri(cx: &mut Context<'_>, message: &core::HttpUri) -> Option<RemoteSource> {
    let rest = message.uri.split_once("://").map_or(message.uri.as_str(), |(_, rest)| rest);
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    if authority.is_empty() || http::uri::PathAndQuery::try_from(path).is_err() {
        return cx.field("uri", |cx| cx.refuse(format!("{:?} is no URI", message.uri)));
    }
    let cluster = match &message.http_upstream_type {
        Some(core::http_uri::HttpUpstreamType::Cluster(name)) => cx.needed("cluster", name)?,
        None => return cx.field("cluster", |cx| cx.refuse("is required")),
    };
    let Some(timeout) = cx.duration("timeout", message.timeout.as_ref()) else {
        return cx.field("timeout", |cx| cx.refuse("is required"));
    };
    let (authority, path) = (cx.share(authority), cx.share(path));
    Some(RemoteSource { cluster, authority, path, timeout, cache: CACHE, retries: 0, ahead: false })
}
