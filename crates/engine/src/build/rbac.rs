//! Authorization rules.

use std::sync::Arc;

use proto::envoy::config::rbac::v3 as xds;
use proto::envoy::extensions::path::r#match::uri_template::v3 as uri_template;

use super::value::{cidr, header, metadata, string};
use super::{Context, type_name};
use crate::matcher::{MetadataMatcher, PathTemplate, StringMatcher};
use crate::rbac::{Action, Permission, Policy, Principal, Rules};

const URI_TEMPLATE: &str = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";

/// Rules that may be absent; `None` if they are wrong.
pub(super) fn optional_rules(
    cx: &mut Context<'_>,
    name: &'static str,
    message: Option<&xds::Rbac>,
) -> Option<Option<Arc<Rules>>> {
    match message {
        None => Some(None),
        Some(message) => cx.field(name, |cx| rules(cx, message)).map(|rules| Some(Arc::new(rules))),
    }
}

fn rules(cx: &mut Context<'_>, message: &xds::Rbac) -> Option<Rules> {
    let action = match message.action {
        0 => Action::Allow,
        1 => Action::Deny,
        2 => Action::Log,
        _ => return cx.field("action", |cx| cx.refuse("is no known action")),
    };
    let mut named: Vec<_> = message.policies.iter().collect();
    named.sort_by_key(|(name, _)| *name);
    let policies = named.iter().filter_map(|(name, message)| cx.key("policies", name, |cx| policy(cx, name, message)));
    Some(Rules::new(action, policies.collect()))
}

fn policy(cx: &mut Context<'_>, name: &str, message: &xds::Policy) -> Option<Policy> {
    if message.condition.is_some() || message.checked_condition.is_some() {
        return cx.field("condition", |cx| cx.refuse("CEL conditions are not implemented"));
    }
    let permissions = cx.list("permissions", &message.permissions, permission);
    let principals = cx.list("principals", &message.principals, principal);
    if message.permissions.is_empty() || message.principals.is_empty() {
        return cx.refuse("at least one permission and one principal are required");
    }
    Some(Policy { name: cx.share(name), permissions, principals })
}

#[allow(deprecated, reason = "metadata is what control planes still send")]
fn permission(cx: &mut Context<'_>, message: &xds::Permission) -> Option<Permission> {
    use xds::permission::Rule;
    Some(match &message.rule {
        Some(Rule::AndRules(set)) => Permission::And(set_of(cx, "and_rules", "rules", &set.rules, permission)?),
        Some(Rule::OrRules(set)) => Permission::Or(set_of(cx, "or_rules", "rules", &set.rules, permission)?),
        Some(Rule::NotRule(inner)) => Permission::Not(Box::new(cx.field("not_rule", |cx| permission(cx, inner))?)),
        Some(Rule::Any(true)) => Permission::Any,
        Some(Rule::Any(false)) => return cx.field("any", |cx| cx.refuse("must be true")),
        Some(Rule::Header(message)) => Permission::Header(cx.field("header", |cx| header(cx, message))?),
        Some(Rule::UrlPath(message)) => Permission::Path(cx.field("url_path", |cx| path(cx, message))?),
        Some(Rule::DestinationIp(range)) => {
            Permission::DestinationIp(cx.field("destination_ip", |cx| cidr(cx, range))?)
        }
        Some(Rule::DestinationPort(port)) => match u16::try_from(*port) {
            Ok(port) => Permission::DestinationPort(port),
            Err(_) => return cx.field("destination_port", |cx| cx.refuse("must be at most 65535")),
        },
        Some(Rule::DestinationPortRange(range)) => {
            let bound = |value: i32| u32::try_from(value).unwrap_or(0);
            Permission::DestinationPortRange(bound(range.start), bound(range.end))
        }
        Some(Rule::Metadata(message)) => Permission::Metadata(cx.field("metadata", |cx| metadata(cx, message))?),
        Some(Rule::RequestedServerName(message)) => {
            Permission::ServerName(cx.field("requested_server_name", |cx| string(cx, message))?)
        }
        Some(Rule::UriTemplate(config)) => Permission::Template(cx.field("uri_template", |cx| template(cx, config))?),
        Some(Rule::SourcedMetadata(message)) => match cx.field("sourced_metadata", |cx| sourced(cx, message))? {
            (matcher, false) => Permission::Metadata(matcher),
            (matcher, true) => Permission::RouteMetadata(matcher),
        },
        Some(Rule::Matcher(_)) => return cx.field("matcher", |cx| cx.refuse("is not implemented")),
        None => return cx.refuse("a rule is required"),
    })
}

#[allow(deprecated, reason = "source_ip and metadata are what control planes still send")]
fn principal(cx: &mut Context<'_>, message: &xds::Principal) -> Option<Principal> {
    use xds::principal::Identifier;
    Some(match &message.identifier {
        Some(Identifier::AndIds(set)) => Principal::And(set_of(cx, "and_ids", "ids", &set.ids, principal)?),
        Some(Identifier::OrIds(set)) => Principal::Or(set_of(cx, "or_ids", "ids", &set.ids, principal)?),
        Some(Identifier::NotId(inner)) => Principal::Not(Box::new(cx.field("not_id", |cx| principal(cx, inner))?)),
        Some(Identifier::Any(true)) => Principal::Any,
        Some(Identifier::Any(false)) => return cx.field("any", |cx| cx.refuse("must be true")),
        Some(Identifier::Authenticated(message)) => Principal::Authenticated(match &message.principal_name {
            Some(name) => Some(cx.field("authenticated.principal_name", |cx| string(cx, name))?),
            None => None,
        }),
        Some(Identifier::SourceIp(range)) => Principal::SourceIp(cx.field("source_ip", |cx| cidr(cx, range))?),
        Some(Identifier::DirectRemoteIp(range)) => {
            Principal::DirectRemoteIp(cx.field("direct_remote_ip", |cx| cidr(cx, range))?)
        }
        Some(Identifier::RemoteIp(range)) => Principal::RemoteIp(cx.field("remote_ip", |cx| cidr(cx, range))?),
        Some(Identifier::Header(message)) => Principal::Header(cx.field("header", |cx| header(cx, message))?),
        Some(Identifier::UrlPath(message)) => Principal::Path(cx.field("url_path", |cx| path(cx, message))?),
        Some(Identifier::Metadata(message)) => Principal::Metadata(cx.field("metadata", |cx| metadata(cx, message))?),
        Some(Identifier::SourcedMetadata(message)) => match cx.field("sourced_metadata", |cx| sourced(cx, message))? {
            (matcher, false) => Principal::Metadata(matcher),
            (matcher, true) => Principal::RouteMetadata(matcher),
        },
        Some(Identifier::FilterState(_)) => return cx.field("filter_state", |cx| cx.refuse("is not implemented")),
        Some(Identifier::Custom(_)) => return cx.field("custom", |cx| cx.refuse("is not implemented")),
        None => return cx.refuse("an identifier is required"),
    })
}

fn set_of<M, T>(
    cx: &mut Context<'_>,
    field: &'static str,
    list: &'static str,
    items: &[M],
    build: impl FnMut(&mut Context<'_>, &M) -> Option<T>,
) -> Option<Vec<T>> {
    cx.field(field, |cx| {
        let built = cx.list(list, items, build);
        if items.is_empty() { cx.field(list, |cx| cx.refuse("at least one is required")) } else { Some(built) }
    })
}

fn path(cx: &mut Context<'_>, message: &proto::envoy::r#type::matcher::v3::PathMatcher) -> Option<StringMatcher> {
    match &message.rule {
        Some(proto::envoy::r#type::matcher::v3::path_matcher::Rule::Path(text)) => {
            cx.field("path", |cx| string(cx, text))
        }
        None => cx.field("path", |cx| cx.refuse("is required")),
    }
}

/// A URI template extension, as rules and routes both use it.
pub(super) fn template(
    cx: &mut Context<'_>,
    config: &proto::envoy::config::core::v3::TypedExtensionConfig,
) -> Option<Arc<PathTemplate>> {
    let Some(any) = config.typed_config.as_ref().filter(|any| type_name(any) == URI_TEMPLATE) else {
        return cx.field("typed_config", |cx| cx.refuse(format!("only {URI_TEMPLATE} is implemented")));
    };
    cx.field("typed_config", |cx| {
        let message: uri_template::UriTemplateMatchConfig = cx.unpack(any)?;
        match PathTemplate::new(&message.path_template) {
            Ok(template) => Some(Arc::new(template)),
            Err(error) => cx.field("path_template", |cx| cx.refuse(error.to_string())),
        }
    })
}

/// The matcher, and whether it looks at the route's metadata.
fn sourced(cx: &mut Context<'_>, message: &xds::SourcedMetadata) -> Option<(MetadataMatcher, bool)> {
    let matcher = cx.required("metadata_matcher", message.metadata_matcher.as_ref(), metadata)?;
    Some((matcher, message.metadata_source == xds::MetadataSource::Route as i32))
}
