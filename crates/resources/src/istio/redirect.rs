//! Redirects and rewrites.

use model::route::{Redirect, RedirectPort, Rewrite};

use crate::codes;
use crate::field::Field;

/// Reads `redirect`.
pub(super) fn read(field: &Field<'_>) -> Redirect {
    let object = field.object();
    object.at_most_one(&["port", "derivePort"]);
    let port = object.get("port").map(|port| RedirectPort::Number(port.port())).or_else(|| {
        object.get("derivePort")?.word(&[("FROM_PROTOCOL_DEFAULT", false), ("FROM_REQUEST_PORT", true)]).map(
            |from_request| match from_request {
                true => RedirectPort::FromRequestPort,
                false => RedirectPort::FromProtocolDefault,
            },
        )
    });
    let code = object.get("redirectCode").map_or(301, |code| {
        let number = code.integer(0, 999);
        if ![301, 302, 303, 307, 308].contains(&number) {
            code.error(codes::RANGE, format!("{number} is no redirect")).help("write 301, 302, 303, 307 or 308");
        }
        u16::try_from(number).unwrap_or(301)
    });
    let text = |name| object.get(name).map(|field| field.text()).filter(|text| !text.is_empty());
    let redirect = Redirect { uri: text("uri"), authority: text("authority"), port, scheme: text("scheme"), code };
    if let (Some(scheme), Some(field)) = (&redirect.scheme, object.get("scheme"))
        && scheme != "http"
        && scheme != "https"
    {
        field.error(codes::ENUM, format!("`{scheme}` is none of http, https"));
    }
    if redirect.uri.is_none() && redirect.authority.is_none() && redirect.port.is_none() && redirect.scheme.is_none() {
        field.error(codes::EMPTY_REDIRECT, "the redirect changes nothing").help("give uri, authority, port or scheme");
    }
    redirect
}

/// Reads `rewrite`.
pub(super) fn rewrite(field: &Field<'_>) -> Rewrite {
    let object = field.object();
    if let (Some(uri), Some(regex)) = (object.get("uri"), object.get("uriRegexRewrite")) {
        regex
            .error_at_key(codes::REWRITE, "`uri` and `uriRegexRewrite` exclude each other")
            .also(uri.key_span(), "given here as well");
    }
    let uri_regex = object.get("uriRegexRewrite").map(|field| {
        let object = field.object();
        let pattern = object.need("match").map(|field| field.pattern()).unwrap_or_default();
        let substitution = object.need("rewrite").map(|field| field.text()).unwrap_or_default();
        (pattern, substitution)
    });
    let text = |name| object.get(name).map(|field| field.text()).filter(|text| !text.is_empty());
    let rewrite = Rewrite { uri: text("uri"), authority: text("authority"), uri_regex };
    if rewrite == Rewrite::default() {
        field.error(codes::REWRITE, "the rewrite changes nothing").help("give uri, uriRegexRewrite or authority");
    }
    rewrite
}
