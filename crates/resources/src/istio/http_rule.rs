//! One HTTP rule of a VirtualService.

use std::time::Duration;

use base64::Engine;
use model::route::{Destination, HeaderOps, HttpAction, HttpRule, Mirror, WeightedDestination};

use super::{cors, fault, headers, http_match, redirect, retries};
use crate::document::Subject;
use crate::field::{Field, Object};
use crate::node::Span;
use crate::{codes, names};

/// Whose rule it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Of a VirtualService with hosts.
    Plain,
    /// Of one without hosts, which others delegate to.
    Delegate,
}

const ACTIONS: [&str; 4] = ["route", "redirect", "directResponse", "delegate"];

/// Reads a rule.
pub(super) fn read(rule: &Field<'_>, role: Role, subject: &Subject<'_>) -> HttpRule {
    let object = rule.object();
    let delegates = object.get("delegate").is_some();
    let matches = object.get("match").map(|field| field.items()).unwrap_or_default();
    let read_match = |field: &Field<'_>| http_match::read(field, delegates || role == Role::Delegate);
    let action = action(&object, role, subject);
    incompatible(&object);
    object.get("statPrefix").inspect(|field| {
        field.warn(codes::NO_EFFECT, "`statPrefix` has no effect: metrics have their own names");
    });
    HttpRule {
        name: object.get("name").map(|field| field.text()).unwrap_or_default(),
        matches: matches.iter().map(read_match).collect(),
        action,
        // 0s switches the timeout off.
        timeout: object.get("timeout").map(|field| field.duration(Duration::ZERO)),
        retries: object.get("retries").map(|field| retries::read(&field)),
        fault: object.get("fault").map(|field| fault::read(&field)),
        mirrors: mirrors(&object),
        rewrite: object.get("rewrite").map(|field| redirect::rewrite(&field)),
        cors: object.get("corsPolicy").map(|field| cors::read(&field)),
        headers: object.get("headers").map(|field| headers::read(&field)).unwrap_or_default(),
        origin: rule.origin(),
    }
}

fn action(object: &Object<'_>, role: Role, subject: &Subject<'_>) -> HttpAction {
    let given = object.given(&ACTIONS);
    if let [first, second, ..] = given.as_slice() {
        let code = if second.name() == "delegate" { codes::DELEGATE } else { codes::ACTION };
        second
            .error_at_key(code, format!("a rule cannot have both `{}` and `{}`", first.name(), second.name()))
            .also(first.key_span(), "given here as well")
            .help("keep one of them, or make two rules");
    }
    let Some(field) = given.first() else {
        object.field.error(codes::ACTION, "the rule has no action: `route` is missing").help(
            "say where requests go: route: [{destination: {host: ...}}]; or give redirect, directResponse or delegate",
        );
        return HttpAction::Route(Vec::new());
    };
    match field.name() {
        "route" => HttpAction::Route(destinations(field)),
        "redirect" => HttpAction::Redirect(redirect::read(field)),
        "directResponse" => direct_response(field),
        _ => delegate(field, role, subject),
    }
}

/// Fields that make no sense with the rule's action.
fn incompatible(object: &Object<'_>) {
    let pairs: [(&'static str, &'static [&'static str]); 2] =
        [("redirect", &["fault", "rewrite"]), ("directResponse", &["fault", "rewrite"])];
    for (action, others) in pairs {
        let Some(field) = object.get(action) else { continue };
        for other in object.given(others) {
            other
                .error_at_key(codes::EXCLUSIVE, format!("`{action}` and `{}` exclude each other", other.name()))
                .also(field.key_span(), "because of this");
        }
    }
}

fn direct_response(field: &Field<'_>) -> HttpAction {
    let object = field.object();
    let status = object.need("status").map_or(200, |status| status.integer(200, 599));
    let body = object.get("body").and_then(|body| {
        let body = body.object();
        body.at_most_one(&["string", "bytes"]);
        let bytes = body.get("bytes").map(|bytes| {
            let decoded = base64::engine::general_purpose::STANDARD.decode(bytes.text());
            decoded.unwrap_or_else(|_| {
                bytes.error(codes::WRONG_TYPE, "`bytes` is not Base64");
                Vec::new()
            })
        });
        bytes.or_else(|| body.get("string").map(|text| text.text().into_bytes()))
    });
    HttpAction::DirectResponse { status: u16::try_from(status).unwrap_or(200), body }
}

fn delegate(field: &Field<'_>, role: Role, subject: &Subject<'_>) -> HttpAction {
    if role == Role::Delegate {
        field.error(codes::DELEGATE, "a delegate (no hosts) cannot delegate further");
    }
    let object = field.object();
    let name = object.need("name").map(|name| name.filled()).unwrap_or_default();
    let namespace = object.get("namespace").map(|namespace| namespace.filled());
    HttpAction::Delegate { name, namespace: namespace.unwrap_or_else(|| subject.namespace()) }
}

fn mirrors(object: &Object<'_>) -> Vec<Mirror> {
    if let (Some(one), Some(many)) = (object.get("mirror"), object.get("mirrors")) {
        many.error_at_key(codes::MIRROR, "`mirror` and `mirrors` exclude each other")
            .also(one.key_span(), "given here as well");
    }
    object.at_most_one(&["mirrorPercentage", "mirrorPercent"]);
    let share = object.get("mirrorPercentage").map(|field| field.percentage()).or_else(|| {
        let field = object.get("mirrorPercent")?;
        field.warn(codes::DEPRECATED, "`mirrorPercent` is deprecated").help("write mirrorPercentage: {value: ...}");
        Some(u32::try_from(field.integer(0, 100)).unwrap_or_default() * 10_000)
    });
    const ALL: u32 = 1_000_000;
    let mut mirrors = Vec::new();
    if let Some(field) = object.get("mirror") {
        mirrors.push(Mirror { destination: destination(&field), millionths: share.unwrap_or(ALL) });
    }
    for item in object.get("mirrors").map(|field| field.items()).unwrap_or_default() {
        let mirror = item.object();
        let millionths = mirror.get("percentage").map_or(ALL, |field| field.percentage());
        if let Some(field) = mirror.need("destination") {
            mirrors.push(Mirror { destination: destination(&field), millionths });
        }
    }
    mirrors
}

/// Weighted destinations; shared by the rules of all protocols.
pub(super) fn destinations(field: &Field<'_>) -> Vec<WeightedDestination> {
    let items = field.items();
    if items.is_empty() {
        field.error(codes::EMPTY, "`route` needs at least one destination");
    }
    let mut weights = Vec::new();
    let mut routes = Vec::new();
    for item in &items {
        let object = item.object();
        let weight = object.get("weight");
        let share = weight.as_ref().map(Field::count);
        if let (Some(field), Some(share)) = (&weight, share) {
            weights.push((field.span(), share));
        }
        routes.push(WeightedDestination {
            destination: object.need("destination").map(|field| destination(&field)).unwrap_or_else(nowhere),
            weight: share.unwrap_or(if items.len() == 1 { 100 } else { 0 }),
            headers: object.get("headers").map(|field| headers::read(&field)).unwrap_or_else(HeaderOps::default),
        });
    }
    check_weights(field, &weights, &routes);
    routes
}

/// Weights are relative, as in Istio: a sum of 0 forwards nothing. A sum near 100 that is not 100 is likely a
/// slip of somebody who meant percent; 1 and 1, or 500 and 500, are not.
fn check_weights(field: &Field<'_>, weights: &[(Span, u32)], routes: &[WeightedDestination]) {
    let sum = routes.iter().map(|route| u64::from(route.weight)).sum::<u64>();
    if routes.len() < 2 {
        return;
    }
    if sum == 0 {
        field
            .error(codes::WEIGHTS, "the weights of this route add up to 0: nothing is forwarded")
            .help("give each destination a weight; together 100");
        return;
    }
    let Some(((last, weight), before)) = weights.split_last() else { return };
    if sum == 100 || !(51..=200).contains(&sum) {
        return;
    }
    let message = format!("weights of this route add up to {sum}, not 100");
    let mut finding = field.warn_at(*last, codes::WEIGHTS, message).label(format!("and {weight} here"));
    for (span, weight) in before {
        finding = finding.also(*span, format!("{weight} here"));
    }
    let others = sum - u64::from(*weight);
    let shares = format!("as written the shares are {}", shares(routes, sum));
    match 100u64.checked_sub(others) {
        Some(rest) if others > 0 => finding.help(format!("change it to {rest}; {shares}")),
        _ => finding.help(shares),
    };
}

fn shares(routes: &[WeightedDestination], sum: u64) -> String {
    let share = |route: &WeightedDestination| format!("{:.1} %", f64::from(route.weight) * 100.0 / sum as f64);
    routes.iter().map(share).collect::<Vec<_>>().join(", ")
}

fn nowhere() -> Destination {
    Destination { host: String::new(), subset: None, port: None }
}

/// A destination.
pub(super) fn destination(field: &Field<'_>) -> Destination {
    let object = field.object();
    let host = object.need("host").map(|host| {
        let text = host.host(names::wildcard_host);
        if text == "*" {
            host.error(codes::HOST, "a destination cannot be `*`");
        }
        text
    });
    let subset = object.get("subset").map(|subset| {
        let text = subset.text();
        if let (false, Err(why)) = (text.is_empty(), names::dns_label(&text)) {
            subset.error(codes::NAME, format!("subset `{text}` {why}"));
        }
        text
    });
    let port = object.get("port").and_then(|port| port.object().need("number").map(|number| number.port()));
    Destination { host: host.unwrap_or_default(), subset: subset.filter(|text| !text.is_empty()), port }
}
