//! CORS.

use std::time::Duration;

use model::StringMatch;
use model::route::CorsPolicy;

use crate::codes;
use crate::field::Field;

const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"];

/// Reads `corsPolicy`.
pub(super) fn read(field: &Field<'_>) -> CorsPolicy {
    let object = field.object();
    let mut origins = Vec::new();
    if let Some(old) = object.get("allowOrigin") {
        old.warn(codes::DEPRECATED, "`allowOrigin` is deprecated").help("write allowOrigins: [{exact: ...}]");
        origins.extend(old.texts().into_iter().map(StringMatch::Exact));
    }
    for item in object.get("allowOrigins").map(|field| field.items()).unwrap_or_default() {
        match item.string_match() {
            Some(origin) => origins.push(origin),
            None => {
                item.error(codes::CORS, "the origin says nothing")
                    .help("write {exact: ...}, {prefix: ...} or {regex: ...}");
            }
        }
    }
    let methods = object.get("allowMethods").map(|field| field.items()).unwrap_or_default();
    for item in &methods {
        let method = item.text();
        if !METHODS.contains(&method.as_str()) {
            item.error(codes::CORS, format!("`{method}` is no HTTP method"))
                .help(format!("known: {}", METHODS.join(", ")));
        }
    }
    let texts = |name| object.get(name).map(|field| field.filled_texts()).unwrap_or_default();
    let unmatched = object
        .get("unmatchedPreflights")
        .and_then(|field| field.word(&[("UNSPECIFIED", None), ("FORWARD", Some(true)), ("IGNORE", Some(false))]));
    CorsPolicy {
        allow_origins: origins,
        allow_methods: methods.iter().map(Field::text).collect(),
        allow_headers: texts("allowHeaders"),
        expose_headers: texts("exposeHeaders"),
        max_age: object.get("maxAge").map(|field| field.duration(Duration::ZERO)),
        allow_credentials: object.get("allowCredentials").map(|field| field.boolean()),
        forward_unmatched_preflights: unmatched.flatten(),
    }
}
