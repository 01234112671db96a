//! MeshConfig `extensionProviders`: external authorizers. Those for telemetry are known and not called.

use std::time::Duration;

use model::StringMatch;
use model::security::{Authorizer, AuthorizerBody, HttpAuthorizer};

use crate::field::{Field, Object};
use crate::{codes, names};

/// Istio's limit for an answer when none is given.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Providers of traces, metrics and logs.
const TELEMETRY: &[&str] = &[
    "zipkin",
    "lightstep",
    "datadog",
    "opencensus",
    "skywalking",
    "opentelemetry",
    "prometheus",
    "stackdriver",
    "envoyFileAccessLog",
    "envoyHttpAls",
    "envoyTcpAls",
    "envoyOtelAls",
    "sds",
];

/// Reads the list.
pub(super) fn read(field: &Field<'_>) -> Vec<Authorizer> {
    let mut known: Vec<Authorizer> = Vec::new();
    let mut seen: Vec<String> = Vec::new();
    for item in field.items() {
        let object = item.object();
        let name = object.need("name").map(|name| name.filled()).unwrap_or_default();
        if seen.contains(&name) {
            item.error(codes::PROVIDER, format!("two providers are called `{name}`")).help("rename one of them");
        }
        known.extend(provider(&object, &name));
        seen.push(name);
    }
    known
}

fn provider(object: &Object<'_>, name: &str) -> Option<Authorizer> {
    object.at_most_one(&["envoyExtAuthzHttp", "envoyExtAuthzGrpc"]);
    object.refuse("envoyExtProc", "external processing is not done");
    for field in object.given(TELEMETRY) {
        field.warn(codes::NO_EFFECT, format!("`{}` has no effect: this provider is not called", field.name()));
    }
    if let Some(field) = object.get("envoyExtAuthzGrpc") {
        return Some(authorizer(&field.object(), name, None));
    }
    object.get("envoyExtAuthzHttp").map(|field| {
        let object = field.object();
        let http = http(&object);
        authorizer(&object, name, Some(http))
    })
}

fn authorizer(object: &Object<'_>, name: &str, http: Option<HttpAuthorizer>) -> Authorizer {
    let (namespace, host) = object.need("service").map(|field| service(&field)).unwrap_or_default();
    let flag = |name| object.get(name).is_some_and(|field| field.boolean());
    let request_headers = if http.is_some() {
        matches(object, "includeRequestHeadersInCheck").or_else(|| matches(object, "includeHeadersInCheck"))
    } else {
        None
    };
    Authorizer {
        name: name.to_owned(),
        namespace,
        host,
        port: object.need("port").map(|field| field.port()).unwrap_or_default(),
        timeout: object.get("timeout").map_or(TIMEOUT, |field| field.positive_duration()),
        fail_open: flag("failOpen"),
        clear_route_cache: flag("clearRouteCache"),
        status_on_error: object.get("statusOnError").and_then(|field| status(&field)),
        body: object.get("includeRequestBodyInCheck").map(|field| body(&field)),
        request_headers: request_headers.unwrap_or_default(),
        http,
    }
}

/// `[NAMESPACE/]HOST`.
fn service(field: &Field<'_>) -> (Option<String>, String) {
    let text = field.filled();
    let (namespace, host) = match text.split_once('/') {
        Some((namespace, host)) => (Some(namespace.to_owned()), host.to_owned()),
        None => (None, text.clone()),
    };
    if let (false, Err(why)) = (text.is_empty(), names::host(&host)) {
        field
            .error(codes::HOST, format!("service `{host}` {why}"))
            .help("write HOST or NAMESPACE/HOST, as authz.tools.svc.cluster.local");
    }
    (namespace, host)
}

fn status(field: &Field<'_>) -> Option<u16> {
    let text = field.text();
    let code = text.parse::<u16>().ok().filter(|code| (100..600).contains(code));
    if code.is_none() {
        field.error(codes::RANGE, format!("`{text}` is no HTTP status"));
    }
    code
}

fn body(field: &Field<'_>) -> AuthorizerBody {
    let object = field.object();
    let flag = |name| object.get(name).is_some_and(|field| field.boolean());
    AuthorizerBody {
        max_bytes: object.get("maxRequestBytes").map_or(1024, |field| field.count().max(1)),
        partial: flag("allowPartialMessage"),
        as_bytes: flag("packAsBytes"),
    }
}

fn http(object: &Object<'_>) -> HttpAuthorizer {
    let path_prefix = object.get("pathPrefix").map(|field| {
        let text = field.text();
        if !text.is_empty() && !text.starts_with('/') {
            field.error(codes::PATH_TEMPLATE, "`pathPrefix` must begin with `/`");
        }
        text
    });
    let additional = object.get("includeAdditionalHeadersInCheck").map(|field| field.pairs()).unwrap_or_default();
    for pair in &additional {
        if let Err(why) = names::header(pair.key()) {
            pair.error_at_key(codes::HEADER, format!("header `{}` {why}", pair.key()));
        }
    }
    HttpAuthorizer {
        path_prefix: path_prefix.unwrap_or_default(),
        additional_headers: additional.iter().map(|pair| (pair.key().to_ascii_lowercase(), pair.text())).collect(),
        upstream_on_allow: matches(object, "headersToUpstreamOnAllow").unwrap_or_default(),
        downstream_on_deny: matches(object, "headersToDownstreamOnDeny").unwrap_or_default(),
        downstream_on_allow: matches(object, "headersToDownstreamOnAllow").unwrap_or_default(),
    }
}

/// Header names: exact, `prefix*` or `*suffix`.
fn matches(object: &Object<'_>, name: &'static str) -> Option<Vec<StringMatch>> {
    let field = object.get(name)?;
    let one = |item: &Field<'_>| StringMatch::from_policy_value(&item.filled().to_ascii_lowercase());
    Some(field.items().iter().map(one).collect())
}
