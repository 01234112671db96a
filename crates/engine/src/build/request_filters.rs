//! Small HTTP filters: `buffer`, `set_metadata`, `health_check` and Istio's `alpn`.

use std::sync::Arc;

use proto::envoy::extensions::filters::http::set_metadata::v3 as set_metadata;
use proto::envoy::extensions::filters::http::{buffer::v3 as buffer, health_check::v3 as health_check};
use proto::google::protobuf::{Any, Struct};
use proto::istio::alpn;

use super::Context;
use super::value::header;
use crate::alpn::{AlpnOverrides, Offer};
use crate::health_filter::HealthCheckFilter;
use crate::metadata::{Datum, MetadataAddition};
use crate::routes::FilterOverride;

pub(super) const BUFFER: &str = "envoy.extensions.filters.http.buffer.v3.Buffer";
pub(super) const BUFFER_PER_ROUTE: &str = "envoy.extensions.filters.http.buffer.v3.BufferPerRoute";
pub(super) const SET_METADATA: &str = "envoy.extensions.filters.http.set_metadata.v3.Config";
pub(super) const HEALTH_CHECK: &str = "envoy.extensions.filters.http.health_check.v3.HealthCheck";
pub(super) const ALPN: &str = "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig";

pub(super) fn buffer(cx: &mut Context<'_>, any: &Any) -> Option<u64> {
    let message: buffer::Buffer = cx.unpack(any)?;
    most(cx, &message)
}

pub(super) fn buffer_per_route(cx: &mut Context<'_>, any: &Any) -> Option<FilterOverride> {
    use buffer::buffer_per_route::Override as Kind;
    let message: buffer::BufferPerRoute = cx.unpack(any)?;
    match &message.r#override {
        Some(Kind::Disabled(true)) => Some(FilterOverride::Disabled),
        Some(Kind::Disabled(false)) => cx.field("disabled", |cx| cx.refuse("must be true, or not set")),
        Some(Kind::Buffer(message)) => cx.field("buffer", |cx| most(cx, message)).map(FilterOverride::Buffer),
        None => cx.refuse("disabled or buffer is required"),
    }
}

fn most(cx: &mut Context<'_>, message: &buffer::Buffer) -> Option<u64> {
    match &message.max_request_bytes {
        Some(most) if most.value > 0 => Some(u64::from(most.value)),
        _ => cx.field("max_request_bytes", |cx| cx.refuse("is required, and must be above zero")),
    }
}

#[allow(deprecated, reason = "the old fields are still sent")]
pub(super) fn set_metadata(cx: &mut Context<'_>, any: &Any) -> Option<Arc<[MetadataAddition]>> {
    let message: set_metadata::Config = cx.unpack(any)?;
    let old = message.value.as_ref().filter(|_| !message.metadata_namespace.is_empty());
    let old = old.map(|value| addition(cx, &message.metadata_namespace, value, true));
    let new = cx.list("metadata", &message.metadata, |cx, one| {
        cx.needed("metadata_namespace", &one.metadata_namespace)?;
        // One without a value says nothing.
        one.value.as_ref().map(|value| addition(cx, &one.metadata_namespace, value, one.allow_overwrite))
    });
    Some(old.into_iter().chain(new).collect())
}

fn addition(cx: &mut Context<'_>, space: &str, value: &Struct, overwrite: bool) -> MetadataAddition {
    MetadataAddition { space: cx.share(space), value: Datum::from_struct(value), overwrite }
}

pub(super) fn health_check(cx: &mut Context<'_>, any: &Any) -> Option<HealthCheckFilter> {
    let message: health_check::HealthCheck = cx.unpack(any)?;
    let Some(pass_through) = &message.pass_through_mode else {
        return cx.field("pass_through_mode", |cx| cx.refuse("is required"));
    };
    let pass_through = pass_through.value;
    let cache_time = cx.duration("cache_time", message.cache_time.as_ref()).filter(|time| !time.is_zero());
    if cache_time.is_some() && !pass_through {
        return cx.field("cache_time", |cx| cx.refuse("must not be set without pass_through_mode"));
    }
    if pass_through && !message.cluster_min_healthy_percentages.is_empty() {
        return cx.field("cluster_min_healthy_percentages", |cx| {
            cx.refuse("must not be set together with pass_through_mode")
        });
    }
    let mut named: Vec<_> = message.cluster_min_healthy_percentages.iter().collect();
    named.sort_by_key(|(name, _)| *name);
    let clusters = named.into_iter().filter_map(|(name, least)| {
        cx.key("cluster_min_healthy_percentages", name, |cx| {
            if !(0.0..=100.0).contains(&least.value) {
                return cx.refuse("must be from 0 to 100");
            }
            // Envoy cuts fractions off.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 100")]
            Some((cx.share(name), least.value as u64))
        })
    });
    let clusters = clusters.collect();
    let headers = cx.list("headers", &message.headers, header);
    Some(HealthCheckFilter { pass_through, headers, cache_time, clusters, heard: Default::default() })
}

pub(super) fn alpn(cx: &mut Context<'_>, any: &Any) -> Option<AlpnOverrides> {
    use alpn::filter_config::Protocol;
    let message: alpn::FilterConfig = cx.unpack(any)?;
    let mut offer = |protocol: Protocol| {
        let found = message.alpn_override.iter().find(|one| one.upstream_protocol == protocol as i32)?;
        Offer::of(found.alpn_override.iter().map(|name| cx.share(name)).collect())
    };
    Some(AlpnOverrides { http11: offer(Protocol::Http11), http2: offer(Protocol::Http2) })
}
