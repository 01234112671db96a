//! What an HTTP rule matches.

use model::StringMatch;
use model::route::HttpMatch;

use super::virtual_service::gateway_names;
use crate::field::{Field, Object};
use crate::node::Value;
use crate::{codes, names};

/// Reads a match. Rules that delegate, and rules of delegates, are merged by comparing their matches, which
/// cannot be done with regular expressions.
pub(super) fn read(field: &Field<'_>, merged: bool) -> HttpMatch {
    if matches!(field.node.value, Value::Null) {
        field.error(codes::MATCH, "the match is empty").help("remove it, or say what it matches");
    }
    let object = field.object();
    let one = |name| text(&object, name, merged);
    let many = |name: &'static str| object.get(name).map(|field| named(&field, merged)).unwrap_or_default();
    let headers = |name: &'static str| object.get(name).map(|field| header_matches(&field, merged)).unwrap_or_default();
    let namespace = object.get("sourceNamespace").map(|field| {
        let text = field.text();
        if let Err(why) = names::dns_label(&text) {
            field.error(codes::NAME, format!("namespace `{text}` {why}"));
        }
        text
    });
    if let Some(field) = object.get("statPrefix") {
        field.warn(codes::NO_EFFECT, "`statPrefix` has no effect: metrics have their own names");
    }
    HttpMatch {
        name: object.get("name").map(|field| field.text()).unwrap_or_default(),
        uri: one("uri"),
        ignore_uri_case: object.get("ignoreUriCase").is_some_and(|field| field.boolean()),
        scheme: one("scheme"),
        method: one("method"),
        authority: one("authority"),
        headers: headers("headers"),
        without_headers: headers("withoutHeaders"),
        query: many("queryParams"),
        port: object.get("port").map(|field| field.port()),
        source_labels: object.get("sourceLabels").map(|field| field.labels()).unwrap_or_default(),
        source_namespace: namespace,
        gateways: object.get("gateways").map(|field| gateway_names(&field)).unwrap_or_default(),
    }
}

fn text(object: &Object<'_>, name: &'static str, merged: bool) -> Option<StringMatch> {
    let field = object.get(name)?;
    let wanted = field.string_match();
    if wanted.is_none() && matches!(field.node.value, Value::Map(_)) {
        field
            .error(codes::MATCH, format!("the match of `{name}` says nothing"))
            .help(format!("write {name}: {{exact: ...}}, {{prefix: ...}} or {{regex: ...}}"));
    }
    check(&field, wanted.as_ref(), merged);
    wanted
}

fn check(field: &Field<'_>, wanted: Option<&StringMatch>, merged: bool) {
    match wanted {
        Some(StringMatch::Prefix(prefix)) if prefix.is_empty() => {
            field.error(codes::MATCH, "a prefix must not be empty").help("to match everything, leave the match out");
        }
        Some(StringMatch::Regex(_)) if merged => {
            field.error(codes::DELEGATE, "a regular expression cannot be used together with delegation");
        }
        _ => {}
    }
}

/// Query parameters; `{}` means that the parameter is there.
fn named(field: &Field<'_>, merged: bool) -> Vec<(String, StringMatch)> {
    let read = |pair: &Field<'_>| {
        if matches!(pair.node.value, Value::Null) {
            pair.error(codes::MATCH, format!("the match of `{}` is empty", pair.key()))
                .help("write {} for \"is there\", or {exact: ...}");
        }
        let wanted = pair.string_match();
        check(pair, wanted.as_ref(), merged);
        (pair.key().to_owned(), wanted.unwrap_or(StringMatch::Present))
    };
    field.pairs().iter().map(read).collect()
}

fn header_matches(field: &Field<'_>, merged: bool) -> Vec<(String, StringMatch)> {
    for pair in field.pairs() {
        if pair.key().starts_with("@request.auth.claims") {
            pair.error_at_key(
                codes::UNSUPPORTED_FIELD,
                "routing by claims is not supported yet: tokens (JWT) are not validated",
            );
        } else if let Err(why) = names::header(pair.key()) {
            pair.error_at_key(codes::HEADER, format!("header name `{}` {why}", pair.key()));
        }
    }
    named(field, merged).into_iter().map(|(name, wanted)| (name.to_ascii_lowercase(), wanted)).collect()
}
