//! Where a redirect leads.

use bytes::Bytes;
use http::header::LOCATION;
use http::{HeaderValue, StatusCode};

use crate::facts::Facts;
use crate::reply::{Flags, LocalReply};
use crate::routes::{Redirect, RedirectPath, RouteMatch, without_port};
use crate::shape;

/// The answer of a redirect route.
pub(super) fn reply(redirect: &Redirect, rule: &RouteMatch, facts: &Facts<'_>) -> LocalReply {
    let scheme = redirect.scheme.as_deref().unwrap_or(facts.scheme);
    let host = redirect.host.as_deref().unwrap_or_else(|| own_host(redirect, scheme, facts));
    let port = redirect.port.map(|port| format!(":{port}")).unwrap_or_default();
    let path = path(redirect, rule, facts);
    to(redirect.status, &format!("{scheme}://{host}{port}{path}"))
}

/// A redirect to `location`.
pub(super) fn to(status: StatusCode, location: &str) -> LocalReply {
    let location = HeaderValue::from_str(location).ok();
    LocalReply {
        status,
        body: Bytes::new(),
        format: None,
        headers: location.map(|location| (LOCATION, location)).into_iter().collect(),
        details: "direct_response".into(),
        flags: Flags::NONE,
        grpc_status: None,
        origin: None,
        is_error: true,
    }
}

/// The request's own host: without its port if the port changes, or if it is the old scheme's usual one.
fn own_host<'a>(redirect: &Redirect, scheme: &str, facts: &Facts<'a>) -> &'a str {
    let bare = without_port(facts.authority);
    let port = facts.authority.get(bare.len()..).unwrap_or_default();
    let usual = matches!((facts.scheme, port), ("http", ":80") | ("https", ":443"));
    if redirect.port.is_some() || (scheme != facts.scheme && usual) { bare } else { facts.authority }
}

fn path(redirect: &Redirect, rule: &RouteMatch, facts: &Facts<'_>) -> String {
    let query = if redirect.strip_query { None } else { facts.query() };
    let bare = match &redirect.path {
        None => facts.path_only().to_owned(),
        Some(RedirectPath::Whole(path)) if path.contains('?') => return path.to_string(),
        Some(RedirectPath::Whole(path)) => path.to_string(),
        Some(RedirectPath::Change(change)) => {
            let changed = shape::changed_path(change, rule, facts);
            let changed = changed.unwrap_or_else(|| facts.path_only().to_owned());
            if changed.contains('?') {
                return changed;
            }
            changed
        }
    };
    match query {
        Some(query) => format!("{bare}?{query}"),
        None => bare,
    }
}
