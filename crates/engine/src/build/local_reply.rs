//! The form of the proxy's own answers.

use http::{HeaderValue, StatusCode};

use proto::envoy::config::core::v3 as core;
use proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;

use super::Context;
use super::access_log::log_filter;
use super::route_action::header_addition;
use super::value::{Substituted, header_value, inline_bytes, substituted};
use crate::local_reply::{BodyFormat, BodyTemplate, LocalReplies, Mapper};

pub(super) fn local_replies(cx: &mut Context<'_>, message: &hcm::LocalReplyConfig) -> Option<LocalReplies> {
    Some(LocalReplies {
        mappers: cx.list("mappers", &message.mappers, mapper),
        format: cx.optional("body_format", message.body_format.as_ref(), body_format),
    })
}

fn mapper(cx: &mut Context<'_>, message: &hcm::ResponseMapper) -> Option<Mapper> {
    let status = cx.optional("status_code", message.status_code.as_ref(), |cx, code| {
        let status = u16::try_from(code.value).ok().filter(|code| (200..600).contains(code));
        let status = status.and_then(|code| StatusCode::from_u16(code).ok());
        status.or_else(|| cx.refuse("must be from 200 to 599"))
    });
    Some(Mapper {
        filter: cx.required("filter", message.filter.as_ref(), log_filter)?,
        status,
        body: cx.optional("body", message.body.as_ref(), inline_bytes),
        format: cx.optional("body_format_override", message.body_format_override.as_ref(), body_format),
        headers: cx.list("headers_to_add", &message.headers_to_add, header_addition),
    })
}

pub(super) fn body_format(cx: &mut Context<'_>, message: &core::SubstitutionFormatString) -> Option<BodyFormat> {
    let (template, usual) = match substituted(cx, message)? {
        Substituted::Text(text) => {
            let absent = if message.omit_empty_values { "" } else { "-" };
            (BodyTemplate::Text(text, absent), "text/plain")
        }
        Substituted::Json(json) => (BodyTemplate::Json(json), "application/json"),
    };
    let content_type = header_value(cx, "content_type", &message.content_type);
    Some(BodyFormat { template, content_type: content_type.unwrap_or_else(|| HeaderValue::from_static(usual)) })
}
