//! What routes do.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use proto::envoy::config::core::v3 as core;
use proto::envoy::config::route::v3 as xds;
use proto::envoy::extensions::path::rewrite::uri_template::v3 as rewrite;
use proto::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;

use super::local_reply::body_format;
use super::route::header_mutation;
use super::value::{header, header_key, header_name, inline_bytes, runtime_fraction, substitution, template};
use super::{Context, filters, flag, number, type_name};
use crate::dice::Fraction;
use crate::matcher::{HeaderKey, PathTemplate, TemplateRewrite};
use crate::retry::{RateLimitedBackOff, RetryOn, RetryPolicy};
use crate::routes::{
    AppendAction, ClusterChoice, DEFAULT_TIMEOUT, DirectResponse, ForwardAction, HashPolicy, HashSource,
    HeaderAddition, HostRewrite, MirrorPolicy, PathChange, Priority, Redirect, RedirectPath, Upgrade, WeightedCluster,
    WeightedClusters, status,
};

const URI_REWRITE: &str = "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig";
const PREVIOUS_PRIORITIES: &str = "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig";
const PREVIOUS_HOSTS: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
/// Envoy's first back-off.
const BASE_INTERVAL: Duration = Duration::from_millis(25);
const RATE_LIMITED_MAX: Duration = Duration::from_secs(300);

/// What a virtual host gives to routes that do not say otherwise.
pub(super) struct Defaults<'d> {
    pub(super) retry: Option<&'d Arc<RetryPolicy>>,
    pub(super) mirrors: &'d [MirrorPolicy],
}

#[allow(deprecated, reason = "max_grpc_timeout is still sent")]
pub(super) fn forward(
    cx: &mut Context<'_>,
    message: &xds::RouteAction,
    defaults: &Defaults<'_>,
    matched: Option<Arc<PathTemplate>>,
) -> Option<ForwardAction> {
    let clusters = cluster_choice(cx, message);
    let retry = match &message.retry_policy {
        Some(policy) => cx.field("retry_policy", |cx| retry(cx, policy)).map(Arc::new),
        None => defaults.retry.cloned(),
    };
    let own_mirrors = cx.list("request_mirror_policies", &message.request_mirror_policies, mirror);
    let duration = message.max_stream_duration.unwrap_or_default();
    let grpc_max = duration.grpc_timeout_header_max.as_ref().or(message.max_grpc_timeout.as_ref());
    let grpc_offset = duration.grpc_timeout_header_offset.as_ref().or(message.grpc_timeout_offset.as_ref());
    Some(ForwardAction {
        clusters: clusters?,
        not_found: match message.cluster_not_found_response_code {
            1 => StatusCode::NOT_FOUND,
            2 => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        },
        path: path_change(cx, message, matched),
        host: host_rewrite(cx, message),
        append_forwarded_host: message.append_x_forwarded_host,
        timeout: cx.limit("timeout", message.timeout.as_ref(), Some(DEFAULT_TIMEOUT)),
        idle_timeout: message.idle_timeout.as_ref().map(|limit| cx.limit("idle_timeout", Some(limit), None)),
        max_stream_duration: duration
            .max_stream_duration
            .as_ref()
            .map(|limit| cx.limit("max_stream_duration", Some(limit), None)),
        grpc_timeout_max: cx.duration("grpc_timeout_header_max", grpc_max),
        grpc_timeout_offset: cx.duration("grpc_timeout_header_offset", grpc_offset),
        retry,
        mirrors: if own_mirrors.is_empty() { defaults.mirrors.to_vec() } else { own_mirrors },
        priority: if message.priority == 1 { Priority::High } else { Priority::Default },
        hash: cx.list("hash_policy", &message.hash_policy, hash_policy),
        upgrades: cx.list("upgrade_configs", &message.upgrade_configs, upgrade),
        limits: super::limit::route_rules(cx, message),
    })
}

fn upgrade(cx: &mut Context<'_>, message: &xds::route_action::UpgradeConfig) -> Option<Upgrade> {
    let name = message.upgrade_type.to_ascii_lowercase();
    let terminate = message.connect_config.is_some();
    if terminate && name != "connect" {
        return cx.field("connect_config", |cx| cx.refuse("is for the upgrade type CONNECT alone"));
    }
    cx.needed("upgrade_type", &name).map(|name| Upgrade {
        name,
        enabled: flag(message.enabled.as_ref(), true),
        terminate,
    })
}

fn cluster_choice(cx: &mut Context<'_>, message: &xds::RouteAction) -> Option<ClusterChoice> {
    use xds::route_action::ClusterSpecifier as Kind;
    match &message.cluster_specifier {
        Some(Kind::Cluster(name)) => cx.needed("cluster", name).map(ClusterChoice::One),
        Some(Kind::ClusterHeader(name)) => header_key(cx, "cluster_header", name).map(ClusterChoice::Header),
        Some(Kind::WeightedClusters(several)) => {
            cx.field("weighted_clusters", |cx| weighted(cx, several)).map(ClusterChoice::Weighted)
        }
        Some(_) => cx.refuse("cluster specifier plugins are not implemented"),
        None => cx.refuse("cluster, cluster_header or weighted_clusters is required"),
    }
}

fn weighted(cx: &mut Context<'_>, message: &xds::WeightedCluster) -> Option<WeightedClusters> {
    use xds::weighted_cluster::RandomValueSpecifier as Kind;
    let clusters = cx.list("clusters", &message.clusters, |cx, cluster| {
        let target = if cluster.cluster_header.is_empty() {
            Ok(cx.needed("name", &cluster.name)?)
        } else {
            Err(header_key(cx, "cluster_header", &cluster.cluster_header)?)
        };
        let host = match &cluster.host_rewrite_specifier {
            Some(xds::weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host)) => {
                cx.text(host)
            }
            None => None,
        };
        Some(WeightedCluster {
            cluster: target,
            weight: number(cluster.weight.as_ref(), 0),
            headers: header_mutation(
                cx,
                &cluster.request_headers_to_remove,
                &cluster.request_headers_to_add,
                &cluster.response_headers_to_remove,
                &cluster.response_headers_to_add,
            ),
            filters: filters::overrides(cx, &cluster.typed_per_filter_config),
            host,
        })
    });
    let total: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
    if total == 0 || total > u64::from(u32::MAX) {
        return cx.refuse("the sum of the weights must be at least 1 and fit 32 bits");
    }
    let random_header = match &message.random_value_specifier {
        Some(Kind::HeaderName(name)) => Some(cx.field("header_name", |cx| header_name(cx, name))?),
        _ => None,
    };
    let use_hash = matches!(&message.random_value_specifier, Some(Kind::UseHashPolicy(wanted)) if wanted.value);
    Some(WeightedClusters { clusters, total, random_header, use_hash })
}

fn path_change(
    cx: &mut Context<'_>,
    message: &xds::RouteAction,
    matched: Option<Arc<PathTemplate>>,
) -> Option<PathChange> {
    let given = [
        !message.prefix_rewrite.is_empty(),
        message.regex_rewrite.is_some(),
        message.path_rewrite_policy.is_some(),
        !message.path_rewrite.is_empty(),
    ];
    if given.iter().filter(|given| **given).count() > 1 {
        return cx
            .refuse("only one of prefix_rewrite, regex_rewrite, path_rewrite_policy and path_rewrite may be given");
    }
    if !message.prefix_rewrite.is_empty() {
        return Some(PathChange::Prefix(cx.share(&message.prefix_rewrite)));
    }
    if let Some(rule) = &message.regex_rewrite {
        return cx.field("regex_rewrite", |cx| substitution(cx, rule)).map(PathChange::Regex);
    }
    if !message.path_rewrite.is_empty() {
        return cx.field("path_rewrite", |cx| template(cx, &message.path_rewrite)).map(PathChange::Format);
    }
    let config = message.path_rewrite_policy.as_ref()?;
    cx.field("path_rewrite_policy", |cx| {
        let Some(matched) = matched else {
            return cx.refuse("needs a path_match_policy in the route's match");
        };
        let Some(any) = config.typed_config.as_ref().filter(|any| type_name(any) == URI_REWRITE) else {
            return cx.field("typed_config", |cx| cx.refuse(format!("only {URI_REWRITE} is implemented")));
        };
        let message: rewrite::UriTemplateRewriteConfig = cx.unpack(any)?;
        match TemplateRewrite::new(&message.path_template_rewrite, &matched) {
            Ok(rewrite) => Some(PathChange::Template(matched, rewrite)),
            Err(error) => cx.refuse(error.to_string()),
        }
    })
}

fn host_rewrite(cx: &mut Context<'_>, message: &xds::RouteAction) -> Option<HostRewrite> {
    use xds::route_action::HostRewriteSpecifier as Kind;
    match message.host_rewrite_specifier.as_ref()? {
        Kind::HostRewriteLiteral(host) => cx.needed("host_rewrite_literal", host).map(HostRewrite::Literal),
        Kind::AutoHostRewrite(wanted) => wanted.value.then_some(HostRewrite::Auto),
        Kind::HostRewriteHeader(name) => header_key(cx, "host_rewrite_header", name).map(HostRewrite::Header),
        Kind::HostRewritePathRegex(rule) => {
            cx.field("host_rewrite_path_regex", |cx| substitution(cx, rule)).map(HostRewrite::PathRegex)
        }
        Kind::HostRewrite(_) => {
            cx.field("host_rewrite", |cx| cx.refuse("is not implemented; use host_rewrite_literal"))
        }
    }
}

pub(super) fn mirror(cx: &mut Context<'_>, message: &xds::route_action::RequestMirrorPolicy) -> Option<MirrorPolicy> {
    let cluster = if message.cluster_header.is_empty() {
        Ok(cx.needed("cluster", &message.cluster)?)
    } else {
        Err(header_key(cx, "cluster_header", &message.cluster_header)?)
    };
    let share = cx.optional("runtime_fraction", message.runtime_fraction.as_ref(), runtime_fraction);
    Some(MirrorPolicy {
        cluster,
        fraction: share.unwrap_or(Fraction::ALWAYS),
        keep_host: message.disable_shadow_host_suffix_append,
    })
}

fn hash_policy(cx: &mut Context<'_>, message: &xds::route_action::HashPolicy) -> Option<HashPolicy> {
    use xds::route_action::hash_policy::PolicySpecifier as Kind;
    let source = match &message.policy_specifier {
        Some(Kind::Header(rule)) => cx.field("header", |cx| {
            let key = header_key(cx, "header_name", &rule.header_name)?;
            let change = cx.optional("regex_rewrite", rule.regex_rewrite.as_ref(), substitution);
            Some(HashSource::Header(key, change))
        })?,
        Some(Kind::Cookie(rule)) => cx.field("cookie", |cx| {
            Some(HashSource::Cookie {
                name: cx.needed("name", &rule.name)?,
                ttl: cx.duration("ttl", rule.ttl.as_ref()),
                path: cx.share(&rule.path),
                attributes: rule.attributes.iter().map(|pair| (cx.share(&pair.name), cx.share(&pair.value))).collect(),
            })
        })?,
        Some(Kind::ConnectionProperties(rule)) if rule.source_ip => HashSource::SourceIp,
        Some(Kind::ConnectionProperties(_)) => {
            return cx.field("connection_properties", |cx| cx.refuse("source_ip must be true"));
        }
        Some(Kind::QueryParameter(rule)) => {
            cx.field("query_parameter", |cx| cx.needed("name", &rule.name)).map(HashSource::Query)?
        }
        Some(Kind::FilterState(rule)) => {
            cx.field("filter_state", |cx| cx.needed("key", &rule.key)).map(|_| HashSource::FilterState)?
        }
        None => return cx.refuse("a source is required"),
    };
    Some(HashPolicy { source, terminal: message.terminal })
}

pub(super) fn retry(cx: &mut Context<'_>, message: &xds::RetryPolicy) -> Option<RetryPolicy> {
    let on = match RetryOn::parse(&message.retry_on) {
        Ok(on) => on,
        Err(word) => return cx.field("retry_on", |cx| cx.refuse(format!("{word:?} is no known condition"))),
    };
    let previous_priorities = cx.optional("retry_priority", message.retry_priority.as_ref(), retry_priority);
    let previous_hosts = cx.list("retry_host_predicate", &message.retry_host_predicate, |cx, predicate| {
        use xds::retry_policy::retry_host_predicate::ConfigType;
        match &predicate.config_type {
            Some(ConfigType::TypedConfig(any)) if type_name(any) == PREVIOUS_HOSTS => Some(()),
            None if predicate.name == "envoy.retry_host_predicates.previous_hosts" => Some(()),
            _ => cx.refuse("only previous_hosts is implemented"),
        }
    });
    let back_off = message.retry_back_off.unwrap_or_default();
    let base = cx.duration("retry_back_off.base_interval", back_off.base_interval.as_ref());
    let base = base.unwrap_or_else(|| cx.runtime().millis("upstream.base_retry_backoff_ms", BASE_INTERVAL));
    let max = cx
        .duration("retry_back_off.max_interval", back_off.max_interval.as_ref())
        .unwrap_or_else(|| base.saturating_mul(10));
    if base.is_zero() || max < base {
        cx.field("retry_back_off", |cx| cx.fault("base_interval must be above zero and at most max_interval"));
    }
    Some(RetryPolicy {
        on,
        num_retries: number(message.num_retries.as_ref(), 1),
        per_try_timeout: cx.limit("per_try_timeout", message.per_try_timeout.as_ref(), None),
        per_try_idle_timeout: cx.limit("per_try_idle_timeout", message.per_try_idle_timeout.as_ref(), None),
        status_codes: cx.list("retriable_status_codes", &message.retriable_status_codes, |cx, code| {
            status(*code).map(|code| code.as_u16()).or_else(|| cx.refuse("is no HTTP status"))
        }),
        headers: cx.list("retriable_headers", &message.retriable_headers, header),
        request_headers: cx.list("retriable_request_headers", &message.retriable_request_headers, header),
        base_interval: base,
        max_interval: max,
        rate_limited: cx.optional(
            "rate_limited_retry_back_off",
            message.rate_limited_retry_back_off.as_ref(),
            rate_limited,
        ),
        previous_hosts: !previous_hosts.is_empty(),
        host_attempts: u32::try_from(message.host_selection_retry_max_attempts).unwrap_or(0).max(1),
        previous_priorities,
    })
}

/// How often the priorities already tried are looked at.
fn retry_priority(cx: &mut Context<'_>, message: &xds::retry_policy::RetryPriority) -> Option<u32> {
    use xds::retry_policy::retry_priority::ConfigType;
    let Some(ConfigType::TypedConfig(any)) = &message.config_type else {
        return cx.refuse("typed_config is required");
    };
    if type_name(any) != PREVIOUS_PRIORITIES {
        return cx.refuse("only previous_priorities is implemented");
    }
    let message: PreviousPrioritiesConfig = cx.unpack(any)?;
    match u32::try_from(message.update_frequency) {
        Ok(every @ 1..) => Some(every),
        _ => cx.field("update_frequency", |cx| cx.refuse("must be at least 1")),
    }
}

fn rate_limited(
    cx: &mut Context<'_>,
    message: &xds::retry_policy::RateLimitedRetryBackOff,
) -> Option<RateLimitedBackOff> {
    let headers = cx.list("reset_headers", &message.reset_headers, |cx, header| {
        Some((cx.field("name", |cx| header_name(cx, &header.name))?, header.format == 1))
    });
    if message.reset_headers.is_empty() {
        return cx.field("reset_headers", |cx| cx.refuse("at least one is required"));
    }
    let max_interval = cx.duration("max_interval", message.max_interval.as_ref()).unwrap_or(RATE_LIMITED_MAX);
    Some(RateLimitedBackOff { headers, max_interval })
}

pub(super) fn redirect(cx: &mut Context<'_>, message: &xds::RedirectAction) -> Option<Redirect> {
    use xds::redirect_action::{PathRewriteSpecifier as Path, SchemeRewriteSpecifier as Scheme};
    let code = match message.response_code {
        0 => StatusCode::MOVED_PERMANENTLY,
        1 => StatusCode::FOUND,
        2 => StatusCode::SEE_OTHER,
        3 => StatusCode::TEMPORARY_REDIRECT,
        4 => StatusCode::PERMANENT_REDIRECT,
        _ => return cx.field("response_code", |cx| cx.refuse("is no known redirect")),
    };
    let port = match message.port_redirect {
        0 => None,
        port => match u16::try_from(port) {
            Ok(port) => Some(port),
            Err(_) => return cx.field("port_redirect", |cx| cx.refuse("must be at most 65535")),
        },
    };
    let path = match &message.path_rewrite_specifier {
        None => None,
        Some(Path::PathRedirect(path)) if path.is_empty() => None,
        Some(Path::PathRedirect(path)) => Some(RedirectPath::Whole(cx.share(path))),
        Some(Path::PrefixRewrite(prefix)) => Some(RedirectPath::Change(PathChange::Prefix(cx.share(prefix)))),
        Some(Path::RegexRewrite(rule)) => {
            let rule = cx.field("regex_rewrite", |cx| substitution(cx, rule))?;
            Some(RedirectPath::Change(PathChange::Regex(rule)))
        }
        Some(Path::PathRewrite(text)) => {
            let text = cx.field("path_rewrite", |cx| template(cx, text))?;
            Some(RedirectPath::Change(PathChange::Format(text)))
        }
    };
    Some(Redirect {
        status: code,
        scheme: match &message.scheme_rewrite_specifier {
            Some(Scheme::HttpsRedirect(true)) => Some(cx.share("https")),
            Some(Scheme::SchemeRedirect(scheme)) => cx.text(scheme),
            _ => None,
        },
        host: cx.text(&message.host_redirect),
        port,
        path,
        strip_query: message.strip_query,
    })
}

pub(super) fn direct_response(cx: &mut Context<'_>, message: &xds::DirectResponseAction) -> Option<DirectResponse> {
    let Some(code) = status(message.status).filter(|code| (200..600).contains(&code.as_u16())) else {
        return cx.field("status", |cx| cx.refuse("must be from 200 to 599"));
    };
    Some(DirectResponse {
        status: code,
        body: cx.optional("body", message.body.as_ref(), inline_bytes).unwrap_or_default(),
        format: cx.optional("body_format", message.body_format.as_ref(), body_format).map(Arc::new),
    })
}

#[allow(deprecated, reason = "append is what old control planes send")]
pub(super) fn header_addition(cx: &mut Context<'_>, message: &core::HeaderValueOption) -> Option<HeaderAddition> {
    let header = cx.required("header", message.header.as_ref(), |_, header| Some(header.clone()))?;
    let HeaderKey::Name(name) = cx.field("header", |cx| header_key(cx, "key", &header.key))? else {
        return cx.field("header.key", |cx| cx.refuse("the host and names with a colon must not be changed this way"));
    };
    let text = header.value;
    if text.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
        return cx.field("header.value", |cx| cx.refuse("has a line end or a zero byte"));
    }
    let value = cx.field("header.value", |cx| template(cx, &text))?;
    let action = match (&message.append, message.append_action) {
        (Some(append), _) if append.value => AppendAction::Append,
        (Some(_), _) => AppendAction::Overwrite,
        (None, action) => append_action(action),
    };
    Some(HeaderAddition { name, value, action, keep_empty: message.keep_empty_value })
}

/// Of headers (`HeaderAppendAction`) and of pairs of key and value (`KeyValueAppendAction`): they have the same numbers.
pub(super) const fn append_action(number: i32) -> AppendAction {
    match number {
        1 => AppendAction::AddIfAbsent,
        2 => AppendAction::Overwrite,
        3 => AppendAction::OverwriteIfExists,
        _ => AppendAction::Append,
    }
}
