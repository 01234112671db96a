//! The shop's page: coloured tiles, each telling which version and instance served it.

use std::fmt::Write;

use http::{HeaderValue, Response, StatusCode};
use serde_json::Value;

use super::Settings;
use super::call::Answer;
use super::serve::Body;
use super::shop::{text, told};

const STYLE: &str = "body{font:16px system-ui;margin:2rem;background:#f6f4ef;color:#222}\
    .tiles{display:flex;flex-wrap:wrap;gap:1rem}.tile{padding:1.5rem;border-radius:.6rem;min-width:8rem;color:#fff}\
    .v1{background:#2f6f8f}.v2{background:#b4582a}small{opacity:.85}";

/// The page made of the catalog's list.
pub(super) fn of_items(settings: &Settings, answer: &Answer) -> Response<Body> {
    let list: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let word = |name: &str| escaped(list[name].as_str().unwrap_or("?"));
    let (version, instance) = (word("version"), word("instance"));
    let mut tiles = String::new();
    for item in list["items"].as_array().into_iter().flatten() {
        let item = escaped(item.as_str().unwrap_or("?"));
        // Writing to a String cannot fail.
        let _ = write!(
            tiles,
            "<div class=\"tile {version}\"><b>{item}</b><br><small>catalog {version}, {instance}</small></div>"
        );
    }
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Tulle demo shop</title><style>{STYLE}</style>\
         <h1>The shop</h1><div class=\"tiles\">{tiles}</div><p><small>page by {}, prices by {}</small></p></html>\n",
        escaped(&settings.instance),
        word("pricing"),
    );
    let mut response = text(StatusCode::OK, page);
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    told(&mut response, "x-catalog-version", list["version"].as_str().unwrap_or(""));
    told(&mut response, "x-pricing-instance", list["pricing"].as_str().unwrap_or(""));
    response
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
