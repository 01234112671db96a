//! Limits of requests and connections.

use std::sync::Arc;
use std::time::Duration;

use proto::envoy::config::route::v3 as route;
use proto::envoy::extensions::common::ratelimit::v3 as common;
use proto::envoy::extensions::filters::http::local_ratelimit::v3 as http;
use proto::envoy::extensions::filters::network::local_ratelimit::v3 as network;
use proto::envoy::r#type::v3 as kind;
use proto::google::protobuf::Any;

use ::http::StatusCode;

use super::route_action::header_addition;
use super::value::{cidr, header, header_key, metadata_key, runtime_fraction, template};
use super::{Context, flag, number};
use crate::dice::Fraction;
use crate::format::{Operator, Piece};
use crate::limit::{
    Action, BucketPlan, ConnectionRateLimit, DefaultBucket, DescriptorLimit, Hits, HostRules, LimiterPlan,
    LocalRateLimit, RateLimit, RouteRules,
};
use crate::metadata::MetadataKey;
use crate::routes::status;

/// Envoy's shortest interval.
const SHORTEST: Duration = Duration::from_millis(50);
const MOST_STAGE: u32 = 10;
const MOST_HEADERS: usize = 10;
const MOST_HITS: u64 = 1_000_000_000;
/// Envoy's own for `max_dynamic_descriptors`.
const MOST_DYNAMIC: u32 = 20;

/// The filter. `route`: its settings for a route, which must have a bucket.
pub(super) fn filter(cx: &mut Context<'_>, any: &Any, of_route: bool) -> Option<LocalRateLimit> {
    let message: http::LocalRateLimit = cx.unpack(any)?;
    if of_route && message.token_bucket.is_none() {
        return cx.field("token_bucket", |cx| cx.refuse("is required where it is set for a route"));
    }
    let plan = Arc::new(plan(cx, &message)?);
    for (name, headers) in [
        ("request_headers_to_add_when_not_enforced", &message.request_headers_to_add_when_not_enforced),
        ("response_headers_to_add", &message.response_headers_to_add),
    ] {
        if headers.len() > MOST_HEADERS {
            cx.field(name, |cx| cx.fault(format!("more than {MOST_HEADERS}")));
        }
    }
    if message.stage > MOST_STAGE {
        cx.field("stage", |cx| cx.fault(format!("must be at most {MOST_STAGE}")));
    }
    let share = |cx: &mut Context<'_>, name, value: Option<&_>| {
        cx.optional(name, value, runtime_fraction).unwrap_or(Fraction::NEVER)
    };
    Some(LocalRateLimit {
        stat_prefix: cx.needed("stat_prefix", &message.stat_prefix)?,
        status: answer(cx, message.status.as_ref())?,
        resource_exhausted: message.rate_limited_as_resource_exhausted,
        enabled: share(cx, "filter_enabled", message.filter_enabled.as_ref()),
        enforced: share(cx, "filter_enforced", message.filter_enforced.as_ref()),
        request_headers: cx.list(
            "request_headers_to_add_when_not_enforced",
            &message.request_headers_to_add_when_not_enforced,
            header_addition,
        ),
        response_headers: cx.list("response_headers_to_add", &message.response_headers_to_add, header_addition),
        limiter: plan.open(),
        plan,
        per_connection: message.local_rate_limit_per_downstream_connection,
        rules: cx.list("rate_limits", &message.rate_limits, own_rule).into_iter().flatten().collect(),
        stage: message.stage,
        host_rules: match message.vh_rate_limits {
            1 => HostRules::Include,
            2 => HostRules::Ignore,
            _ => HostRules::Fallback,
        },
        told: message.enable_x_ratelimit_headers == common::XRateLimitHeadersRfcVersion::DraftVersion03 as i32,
        retry_after: message.enable_retry_after_header,
    })
}

/// A limit of new connections.
pub(super) fn connections(cx: &mut Context<'_>, any: &Any) -> Option<ConnectionRateLimit> {
    let message: network::LocalRateLimit = cx.unpack(any)?;
    let plan = cx.required("token_bucket", message.token_bucket.as_ref(), |cx, message| bucket(cx, message, false))?;
    Some(ConnectionRateLimit {
        stat_prefix: cx.needed("stat_prefix", &message.stat_prefix)?,
        enabled: message.runtime_enabled.as_ref().is_none_or(|enabled| flag(enabled.default_value.as_ref(), false)),
        bucket: if message.share_key.is_empty() { plan.open() } else { cx.shared_bucket(&message.share_key, plan) },
    })
}

#[allow(deprecated, reason = "include_vh_rate_limits is what control planes send")]
/// The rules of a route; `None`: it says nothing of limits.
pub(super) fn route_rules(cx: &mut Context<'_>, message: &route::RouteAction) -> Option<Box<RouteRules>> {
    let with_host = flag(message.include_vh_rate_limits.as_ref(), false);
    let rules = cx.list("rate_limits", &message.rate_limits, rule);
    (with_host || !rules.is_empty()).then(|| Box::new(RouteRules { rules, with_host }))
}

fn plan(cx: &mut Context<'_>, message: &http::LocalRateLimit) -> Option<LimiterPlan> {
    let default = match &message.token_bucket {
        None => DefaultBucket::None,
        Some(inner) => match cx.field("token_bucket", |cx| bucket(cx, inner, true))? {
            BucketPlan { max_tokens: 0, .. } => DefaultBucket::Empty,
            plan => DefaultBucket::Filled(plan),
        },
    };
    let descriptors: Vec<DescriptorLimit> = cx.list("descriptors", &message.descriptors, descriptor);
    let same = |at: &usize| {
        let (before, rest) = descriptors.split_at_checked(*at).unwrap_or_default();
        rest.first().is_some_and(|one| before.iter().any(|other| other.entries == one.entries))
    };
    if let Some(at) = (0..descriptors.len()).find(same) {
        cx.item("descriptors", at, |cx| cx.fault("stands twice"));
    }
    let most_dynamic = number(message.max_dynamic_descriptors.as_ref(), MOST_DYNAMIC);
    if most_dynamic == 0 {
        return cx.field("max_dynamic_descriptors", |cx| cx.refuse("must be at least 1"));
    }
    Some(LimiterPlan {
        default,
        descriptors,
        always_default: flag(message.always_consume_default_token_bucket.as_ref(), true),
        most_dynamic,
    })
}

fn descriptor(cx: &mut Context<'_>, message: &common::LocalRateLimitDescriptor) -> Option<DescriptorLimit> {
    if message.entries.is_empty() {
        return cx.field("entries", |cx| cx.refuse("at least one is required"));
    }
    let entries =
        cx.list("entries", &message.entries, |cx, entry| Some((cx.needed("key", &entry.key)?, cx.share(&entry.value))));
    let bucket = cx.required("token_bucket", message.token_bucket.as_ref(), |cx, message| bucket(cx, message, true))?;
    Some(DescriptorLimit { entries, bucket, shadow: message.shadow_mode })
}

/// `may_be_empty`: one that holds nothing needs no good interval.
fn bucket(cx: &mut Context<'_>, message: &kind::TokenBucket, may_be_empty: bool) -> Option<BucketPlan> {
    let tokens_per_fill = number(message.tokens_per_fill.as_ref(), 1);
    if tokens_per_fill == 0 {
        return cx.field("tokens_per_fill", |cx| cx.refuse("must be at least 1"));
    }
    // Envoy counts in milliseconds.
    let interval = cx.duration("fill_interval", message.fill_interval.as_ref()).unwrap_or_default();
    let fill_interval = Duration::from_millis(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX));
    let free = may_be_empty && message.max_tokens == 0 && !interval.is_zero();
    if fill_interval < SHORTEST && !free {
        return cx.field("fill_interval", |cx| cx.refuse("must be at least 50 ms"));
    }
    Some(BucketPlan { max_tokens: message.max_tokens, tokens_per_fill, fill_interval })
}

/// Anything below 400 stands for 429.
fn answer(cx: &mut Context<'_>, message: Option<&kind::HttpStatus>) -> Option<StatusCode> {
    let Some(message) = message else { return Some(StatusCode::TOO_MANY_REQUESTS) };
    let known = kind::StatusCode::try_from(message.code).ok().filter(|code| *code != kind::StatusCode::Empty);
    if known.is_none() {
        return cx.field("status.code", |cx| cx.refuse("is no status that Envoy knows"));
    }
    let code = u32::try_from(message.code).ok().and_then(status).filter(|code| code.as_u16() >= 400);
    Some(code.unwrap_or(StatusCode::TOO_MANY_REQUESTS))
}

/// A rule of the filter itself. `Some(None)`: one for the end of the stream, which this filter does not apply.
fn own_rule(cx: &mut Context<'_>, message: &route::RateLimit) -> Option<Option<RateLimit>> {
    if message.stage.is_some() || !message.disable_key.is_empty() {
        return cx.refuse("stage and disable_key are for the rules of routes");
    }
    let built = rule(cx, message)?;
    Some((!message.apply_on_stream_done).then_some(built))
}

/// A rule of a route, a virtual host or a filter.
pub(super) fn rule(cx: &mut Context<'_>, message: &route::RateLimit) -> Option<RateLimit> {
    use route::rate_limit::XRateLimitOption as Option_;
    let stage = number(message.stage.as_ref(), 0);
    if stage > MOST_STAGE {
        return cx.field("stage", |cx| cx.refuse(format!("must be at most {MOST_STAGE}")));
    }
    if message.actions.is_empty() {
        return cx.field("actions", |cx| cx.refuse("at least one is required"));
    }
    Some(RateLimit {
        stage,
        off: !message.disable_key.is_empty(),
        actions: cx.list("actions", &message.actions, action),
        hits: match &message.hits_addend {
            Some(addend) => Some(cx.field("hits_addend", |cx| hits(cx, addend))?),
            None => None,
        },
        gives_back: message.hits_addend.as_ref().is_some_and(|addend| addend.is_negative_hits),
        told: match Option_::try_from(message.x_ratelimit_option) {
            Ok(Option_::Off) => Some(false),
            Ok(Option_::DraftVersion03) => Some(true),
            _ => None,
        },
    })
}

fn hits(cx: &mut Context<'_>, message: &route::rate_limit::HitsAddend) -> Option<Hits> {
    match (&message.number, message.format.as_str()) {
        (Some(number), "") if number.value > MOST_HITS => {
            cx.field("number", |cx| cx.refuse(format!("must be at most {MOST_HITS}")))
        }
        (Some(number), "") => Some(Hits::Fixed(number.value)),
        (None, text) if !text.is_empty() => cx.field("format", |cx| {
            let template = template(cx, text)?;
            match template.pieces() {
                [Piece::Operator(Operator::Req { .. } | Operator::Metadata { .. } | Operator::QueryParam(_), _)] => {
                    Some(Hits::Said(template))
                }
                [Piece::Operator(..)] => cx.refuse("only %REQ%, %QUERY_PARAM% and metadata are implemented here"),
                _ => cx.refuse("must be exactly one operator"),
            }
        }),
        _ => cx.refuse("either number or format is required"),
    }
}

#[allow(deprecated, reason = "what is old is refused by name")]
fn action(cx: &mut Context<'_>, message: &route::rate_limit::Action) -> Option<Action> {
    use route::rate_limit::action::ActionSpecifier as Kind;
    match &message.action_specifier {
        Some(Kind::SourceCluster(_)) => Some(Action::Fixed(cx.share("source_cluster"), cx.own_cluster())),
        Some(Kind::DestinationCluster(_)) => Some(Action::DestinationCluster),
        Some(Kind::RequestHeaders(rule)) => cx.field("request_headers", |cx| {
            let header = header_key(cx, "header_name", &rule.header_name)?;
            Some(Action::Header { key: key(cx, &rule.descriptor_key)?, header, optional: rule.skip_if_absent })
        }),
        Some(Kind::QueryParameters(rule)) => cx.field("query_parameters", |cx| {
            let parameter = cx.needed("query_parameter_name", &rule.query_parameter_name)?;
            Some(Action::Query { key: key(cx, &rule.descriptor_key)?, parameter, optional: rule.skip_if_absent })
        }),
        Some(Kind::RemoteAddress(_)) => Some(Action::RemoteAddress),
        Some(Kind::MaskedRemoteAddress(rule)) => cx.field("masked_remote_address", |cx| {
            let v4 = length(cx, "v4_prefix_mask_len", number(rule.v4_prefix_mask_len.as_ref(), 32), 32)?;
            let v6 = length(cx, "v6_prefix_mask_len", number(rule.v6_prefix_mask_len.as_ref(), 128), 128)?;
            Some(Action::MaskedRemoteAddress { v4, v6 })
        }),
        Some(Kind::GenericKey(rule)) => cx.field("generic_key", |cx| {
            let value = cx.needed("descriptor_value", &rule.descriptor_value)?;
            Some(Action::Fixed(key_or(cx, &rule.descriptor_key, "generic_key"), value))
        }),
        Some(Kind::HeaderValueMatch(rule)) => cx.field("header_value_match", |cx| {
            if rule.headers.is_empty() {
                return cx.field("headers", |cx| cx.refuse("at least one is required"));
            }
            Some(Action::HeaderMatch {
                key: key_or(cx, &rule.descriptor_key, "header_match"),
                value: cx.needed("descriptor_value", &rule.descriptor_value)?,
                headers: cx.list("headers", &rule.headers, header),
                expected: flag(rule.expect_match.as_ref(), true),
            })
        }),
        Some(Kind::QueryParameterValueMatch(rule)) => cx.field("query_parameter_value_match", |cx| {
            if rule.query_parameters.is_empty() {
                return cx.field("query_parameters", |cx| cx.refuse("at least one is required"));
            }
            Some(Action::QueryMatch {
                key: key_or(cx, &rule.descriptor_key, "query_match"),
                value: cx.needed("descriptor_value", &rule.descriptor_value)?,
                parameters: cx.list("query_parameters", &rule.query_parameters, super::route::query),
                expected: flag(rule.expect_match.as_ref(), true),
            })
        }),
        Some(Kind::RemoteAddressMatch(rule)) => cx.field("remote_address_match", |cx| address_match(cx, rule)),
        Some(Kind::Metadata(rule)) => cx.field("metadata", |cx| metadata_action(cx, rule)),
        Some(Kind::DynamicMetadata(_)) => cx.field("dynamic_metadata", |cx| cx.refuse("use metadata")),
        Some(Kind::Extension(_)) => cx.field("extension", |cx| cx.refuse("is not implemented")),
        None => cx.refuse("an action is required"),
    }
}

fn address_match(cx: &mut Context<'_>, rule: &route::rate_limit::action::RemoteAddressMatch) -> Option<Action> {
    use proto::envoy::config::core::v3::CidrRange;
    let text = cx.needed("descriptor_value", &rule.descriptor_value)?;
    let value = cx.field("descriptor_value", |cx| template(cx, &text))?;
    let key = key_or(cx, &rule.descriptor_key, "remote_address_match");
    let default = cx.text(&rule.default_value);
    cx.required("address_matcher", rule.address_matcher.as_ref(), |cx, matcher| {
        let ranges = cx.list("ranges", &matcher.ranges, |cx, range| {
            let same = CidrRange { address_prefix: range.address_prefix.clone(), prefix_len: range.prefix_len };
            cidr(cx, &same)
        });
        Some(Action::RemoteAddressMatch { key, value, default, ranges, invert: matcher.invert_match })
    })
}

fn metadata_action(cx: &mut Context<'_>, rule: &route::rate_limit::action::MetaData) -> Option<Action> {
    use route::rate_limit::action::meta_data::Source;
    let of_route = match Source::try_from(rule.source) {
        Ok(Source::Dynamic) => false,
        Ok(Source::RouteEntry) => true,
        _ => return cx.field("source", |cx| cx.refuse("only DYNAMIC and ROUTE_ENTRY are implemented")),
    };
    let MetadataKey { space, path } = cx.required("metadata_key", rule.metadata_key.as_ref(), metadata_key)?;
    Some(Action::Metadata {
        key: key(cx, &rule.descriptor_key)?,
        of_route,
        space,
        path,
        default: cx.text(&rule.default_value),
        optional: rule.skip_if_absent,
    })
}

fn key(cx: &mut Context<'_>, text: &str) -> Option<Arc<str>> {
    cx.needed("descriptor_key", text)
}

fn key_or(cx: &mut Context<'_>, text: &str, default: &str) -> Arc<str> {
    cx.share(if text.is_empty() { default } else { text })
}

fn length(cx: &mut Context<'_>, name: &'static str, number: u32, most: u8) -> Option<u8> {
    let length = u8::try_from(number).ok().filter(|length| *length <= most);
    length.or_else(|| cx.field(name, |cx| cx.refuse(format!("must be at most {most}"))))
}
