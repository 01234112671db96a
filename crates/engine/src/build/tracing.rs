//! Which requests of an HTTP connection manager are traced.

use proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use proto::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use proto::envoy::r#type::v3::Percent;

use super::{Context, flag};
use crate::dice::Fraction;
use crate::tracing::Tracing;

/// What the manager says of tracing, and whether request ids may be marked (`pack_trace_reason`).
pub(super) fn tracing(cx: &mut Context<'_>, message: &hcm::HttpConnectionManager) -> (Option<Tracing>, bool) {
    let ids = cx.optional("request_id_extension", message.request_id_extension.as_ref(), |cx, extension| {
        let any = extension.typed_config.as_ref()?;
        cx.field("typed_config", |cx| cx.unpack::<UuidRequestIdConfig>(any))
    });
    let ids = ids.unwrap_or_default();
    let by_id = flag(ids.use_request_id_for_trace_sampling.as_ref(), true);
    let tracing = cx.optional("tracing", message.tracing.as_ref(), |cx, message| {
        let mut share = |field, key, percent, of| {
            let share = cx.field(field, |cx| percentage(cx, percent, of)).unwrap_or(Fraction::ALWAYS);
            cx.runtime().numerator(key, share)
        };
        Some(Tracing {
            client: share("client_sampling", "tracing.client_enabled", message.client_sampling.as_ref(), 100),
            random: share("random_sampling", "tracing.random_sampling", message.random_sampling.as_ref(), 10_000),
            overall: share("overall_sampling", "tracing.global_enabled", message.overall_sampling.as_ref(), 10_000),
            by_id,
        })
    });
    (tracing, flag(ids.pack_trace_reason.as_ref(), true))
}

/// A share in parts of `denominator`: whole ones of a hundred, rounded ones of ten thousand (as Envoy takes them).
fn percentage(cx: &mut Context<'_>, percent: Option<&Percent>, denominator: u32) -> Option<Fraction> {
    let percent = percent.map_or(100.0, |percent| percent.value);
    if !(0.0..=100.0).contains(&percent) {
        return cx.field("value", |cx| cx.refuse("must be from 0 to 100"));
    }
    let parts = percent * f64::from(denominator) / 100.0;
    let numerator = if denominator == 100 { parts.trunc() } else { parts.round() } as u32;
    Some(Fraction { numerator, denominator })
}
