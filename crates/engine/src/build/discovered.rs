//! HTTP filters whose configuration comes by name (ECDS), and that configuration.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;

use proto::envoy::config::core::v3 as core;
use proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use proto::google::protobuf::Any;

use super::http::{ROUTER, filter_kind, not_implemented};
use super::value::from_server;
use super::{Context, Strings, filters, opened, type_name};
use crate::discovered::{DiscoveredFilter, FilterConfig};
use crate::http_manager::HttpFilterKind;

/// Envoy's default of `initial_fetch_timeout`.
const FIRST_FETCH: Duration = Duration::from_secs(15);

/// A filter of a manager that is only named there.
pub(super) fn discovered(
    cx: &mut Context<'_>,
    name: &str,
    message: &core::ExtensionConfigSource,
) -> Option<DiscoveredFilter> {
    let patience = cx.required("config_source", message.config_source.as_ref(), |cx, source| {
        Some(cx.limit("initial_fetch_timeout", source.initial_fetch_timeout.as_ref(), Some(FIRST_FETCH)))
    });
    from_server(cx, "config_source", message.config_source.as_ref())?;
    let types = types(cx, &message.type_urls)?;
    let default = cx.optional("default_config", message.default_config.as_ref(), |cx, any| {
        let (found, kind) = config(cx, name, any)?;
        if !types.contains(&found) {
            return cx.refuse(format!("{found} is not among type_urls"));
        }
        Some(kind)
    });
    if message.apply_default_config_without_warming && message.default_config.is_none() {
        cx.field("apply_default_config_without_warming", |cx| cx.fault("needs default_config"));
    }
    Some(DiscoveredFilter {
        name: cx.share(name),
        may_tell_certificate: types.iter().any(|known| **known == *filters::EXT_AUTHZ),
        types,
        default,
        warms: !message.apply_default_config_without_warming,
        patience: patience?,
    })
}

/// The resource.
pub(crate) fn filter_config(cx: &mut Context<'_>, bytes: &[u8]) -> Option<FilterConfig> {
    let message = match core::TypedExtensionConfig::decode(bytes) {
        Ok(message) => message,
        Err(error) => return cx.refuse(format!("is not a well-formed extension configuration: {error}")),
    };
    let name = cx.needed("name", &message.name);
    let built = cx.required("typed_config", message.typed_config.as_ref(), |cx, any| config(cx, &message.name, any));
    let (type_name, kind) = built?;
    Some(FilterConfig { name: name?, type_name, kind, version: cx.hash })
}

fn types(cx: &mut Context<'_>, urls: &[String]) -> Option<Vec<Arc<str>>> {
    if urls.is_empty() {
        return cx.field("type_urls", |cx| cx.refuse("at least one is required"));
    }
    let types = cx.list("type_urls", urls, |cx, url| {
        let name = proto::type_url::message_name(url);
        if name == ROUTER || is_implemented(url) { Some(cx.share(name)) } else { cx.refuse(not_implemented(name)) }
    });
    (types.len() == urls.len()).then_some(types)
}

/// Whether a filter can be built from messages of this type: an empty one, at least, is not turned away for its type.
fn is_implemented(url: &str) -> bool {
    let empty = Any { type_url: url.to_owned(), value: Vec::new() };
    let mut strings = Strings::default();
    let mut cx = Context::new(&mut strings, 0);
    let built = filter_kind(&mut cx, &hcm::HttpFilter::default(), &empty);
    let unknown = not_implemented(type_name(&empty));
    cx.finish(built).map_or_else(|faults| faults.iter().all(|fault| fault.message != unknown), |_| true)
}

/// What a message in an `Any` makes of a filter, and the message's full name.
fn config(cx: &mut Context<'_>, name: &str, any: &Any) -> Option<(Arc<str>, HttpFilterKind)> {
    let opened = opened(cx, any)?;
    if type_name(&opened) == ROUTER {
        return cx.refuse("the router must be the last filter, and stand in the listener itself");
    }
    let named = hcm::HttpFilter { name: name.to_owned(), ..hcm::HttpFilter::default() };
    let kind = filter_kind(cx, &named, &opened)?.unwrap_or(HttpFilterKind::Idle);
    Some((cx.share(type_name(&opened)), kind))
}
