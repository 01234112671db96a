//! External authorization: who is asked about what, what is said, and what the answer does.

use std::sync::Arc;

use bytes::Bytes;
use engine::decide::{Answered, Guard, Pending, Question, Step, World as Around, begin};
use engine::ext_authz::{Answer, Asking, BodyView, Call};
use engine::{Dice, HttpManager, Moment, Outcome};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use prost::Message;
use proto::envoy::config::core::v3::{HeaderValue as Header, HeaderValueOption};
use proto::envoy::service::auth::v3 as auth;

use crate::world::{Ask, World};

const ROUTES: &str = r#"
- name: v
  domains: ["*"]
  routes:
    - match: {prefix: /free}
      route: {cluster: a}
      typed_per_filter_config:
        ext:
          "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
          disabled: true
    - match: {prefix: /told}
      route: {cluster: a}
      typed_per_filter_config:
        ext:
          "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
          check_settings: {context_extensions: {room: blue}, disable_request_body_buffering: true}
    - match: {prefix: /, headers: [{name: x-way, string_match: {exact: side}}]}
      route: {cluster: b}
    - {match: {prefix: /}, route: {cluster: a}}
"#;

fn filter(settings: &str) -> String {
    format!(
        "- name: ext
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
    transport_api_version: V3
{settings}"
    )
}

const HTTP: &str = "    allowed_headers: {patterns: [{prefix: x-}]}
    disallowed_headers: {patterns: [{exact: x-secret}]}
    http_service:
      server_uri: {uri: 'http://authz.test', cluster: c, timeout: 1s}
      path_prefix: /check
      authorization_request: {headers_to_add: [{key: x-from, value: mesh}]}
      authorization_response:
        allowed_upstream_headers: {patterns: [{exact: x-user}, {exact: x-way}]}
        allowed_client_headers: {patterns: [{exact: x-why}]}
        allowed_client_headers_on_success: {patterns: [{exact: x-note}]}
";
const GRPC: &str = "    with_request_body: {max_request_bytes: 10, allow_partial_message: true}
    grpc_service: {envoy_grpc: {cluster_name: c}, timeout: 2s}
";

/// A request that waits for its authorizer.
struct Waiting {
    manager: Arc<HttpManager>,
    world: World,
    ask: Ask,
}

impl Waiting {
    fn new(settings: &str, ask: Ask) -> Self {
        let world = World::new(ROUTES, &filter(settings));
        Self { manager: world.manager(), world, ask }
    }

    fn around<'w>(&'w self, facts: &'w engine::Facts<'w>) -> Around<'w, 'w> {
        Around { plan: &self.world.plan, manager: &self.manager, facts, now: Moment::START }
    }

    /// The call, and what becomes of the request when this comes back.
    fn ask(&self, body: Option<&BodyView>, back: Option<Answer>) -> (Call, engine::Decision) {
        let facts = self.ask.facts();
        let Step::Ask(pending) = begin(self.around(&facts), &mut Dice::new(1)) else { panic!("nobody is asked") };
        let asking = asking(&pending);
        let call = pending.call(&asking, &facts, body);
        let verdict = back.map_or(engine::ext_authz::Verdict::Error, |back| asking.understand(&back));
        match pending.go_on(self.around(&facts), Answered::Verdict(verdict), &mut Dice::new(1)) {
            Step::Done(decision) => (call, decision),
            Step::Ask(_) => panic!("asks again"),
        }
    }
}

fn asking(pending: &Pending) -> Asking {
    match &pending.question {
        Question::Authorize(asking) => asking.clone(),
        other => panic!("{other:?}"),
    }
}

fn answer(status: u16, headers: &[(&'static str, &str)], body: &'static str) -> Option<Answer> {
    let headers = headers
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).expect("value")));
    Some(Answer {
        status: StatusCode::from_u16(status).expect("status"),
        headers: headers.collect(),
        body: Bytes::from_static(body.as_bytes()),
    })
}

fn reply(decision: engine::Decision) -> (u16, String, String, Vec<String>) {
    let Outcome::Reply(reply) = decision.outcome else { panic!("passed") };
    let headers = reply.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")));
    let body = String::from_utf8_lossy(&reply.body).into_owned();
    (reply.status.as_u16(), reply.details.into_owned(), body, headers.collect())
}

#[test]
fn by_http_the_question_is_the_request_without_what_is_not_to_be_seen() {
    let ask = Ask::new("POST shop.test/a?b=c x-user=root x-secret=1 cookie=c=1 authorization=Basic");
    let (call, decision) = Waiting::new(HTTP, ask).ask(None, answer(200, &[("x-user", "amy"), ("x-note", "hi")], ""));
    assert_eq!(
        (call.method.as_str(), call.path.as_str(), call.authority.as_str()),
        ("POST", "/check/a?b=c", "shop.test")
    );
    let mut names: Vec<&str> = call.headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["authorization", "content-length", "x-from", "x-user"]);
    assert_eq!(decision.guards(), [Guard::ExternalAllowed]);
    let changed = decision.changed.expect("changes");
    assert_eq!(changed.headers.get("x-user").expect("x-user"), "amy");
    assert!(!changed.headers.contains_key("x-note"));
    assert_eq!(decision.asked.as_ref().map_or(0, |asked| asked.external.len()), 1, "for the client");
}

#[test]
fn by_http_other_answers_are_the_clients_and_failures_are_not() {
    let ask = || Ask::new("GET x/a");
    let headers = [("x-why", "no"), ("x-inside", "1"), ("location", "/login"), ("content-length", "2")];
    let (_, decision) = Waiting::new(HTTP, ask()).ask(None, answer(302, &headers, "go"));
    assert_eq!(decision.guards(), [Guard::ExternalDenied]);
    let (status, details, body, mut headers) = reply(decision);
    headers.sort();
    assert_eq!((status, details.as_str(), body.as_str()), (302, "ext_authz_denied", "go"));
    assert_eq!(headers, ["location: /login", "x-why: no"]);
    for failure in [answer(503, &[], ""), None] {
        let (_, decision) = Waiting::new(HTTP, ask()).ask(None, failure);
        assert_eq!(decision.guards(), [Guard::ExternalError]);
        assert_eq!(reply(decision), (403, "ext_authz_error".to_owned(), String::new(), Vec::new()));
    }
    let open = format!("{HTTP}    failure_mode_allow: true\n    failure_mode_allow_header_add: true\n");
    let (_, decision) = Waiting::new(&open, ask()).ask(None, None);
    assert_eq!(decision.guards(), [Guard::ExternalFailedOpen]);
    let changed = decision.changed.expect("changes");
    assert_eq!(changed.headers.get("x-envoy-auth-failure-mode-allowed").expect("header"), "true");
    let other = format!("{HTTP}    status_on_error: {{code: ServiceUnavailable}}\n");
    assert_eq!(reply(Waiting::new(&other, ask()).ask(None, None).1).0, 503);
}

#[test]
fn an_answer_can_lead_to_another_route() {
    let ask = || Ask::new("GET x/a");
    let side = || answer(200, &[("x-way", "side")], "");
    let cluster = |decision: engine::Decision| match decision.outcome {
        Outcome::Forward(forward) => forward.cluster.name().to_string(),
        Outcome::Reply(reply) => reply.details.into_owned(),
    };
    assert_eq!(cluster(Waiting::new(HTTP, ask()).ask(None, side()).1), "a");
    let clearing = format!("{HTTP}    clear_route_cache: true\n");
    assert_eq!(cluster(Waiting::new(&clearing, ask()).ask(None, side()).1), "b");
}

fn check(response: &auth::CheckResponse) -> Option<Answer> {
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(response.encoded_len()).expect("small").to_be_bytes());
    body.extend_from_slice(&response.encode_to_vec());
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", HeaderValue::from_static("0"));
    Some(Answer { status: StatusCode::OK, headers, body: body.into() })
}

fn option(key: &str, value: &str) -> HeaderValueOption {
    let header = Header { key: key.to_owned(), value: value.to_owned(), ..Header::default() };
    HeaderValueOption { header: Some(header), ..HeaderValueOption::default() }
}

#[test]
fn by_grpc_everything_is_told() {
    let ask = Ask::new("POST shop.test/told?b=c x-a=1 x-a=2 content-length=12").by("spiffe://t/ns/shop/sa/web");
    let view = BodyView { bytes: Bytes::from_static(b"0123456789"), cut: true };
    let ok = auth::OkHttpResponse {
        headers: vec![option("x-user", "amy"), option(":path", "/other"), option("host", "evil")],
        headers_to_remove: vec!["x-a".to_owned(), ":method".to_owned()],
        response_headers_to_add: vec![option("x-note", "hi")],
        query_parameters_to_set: Vec::new(),
        query_parameters_to_remove: vec!["b".to_owned()],
        ..auth::OkHttpResponse::default()
    };
    let ok = auth::CheckResponse {
        http_response: Some(auth::check_response::HttpResponse::OkResponse(ok)),
        ..auth::CheckResponse::default()
    };
    let (call, decision) = Waiting::new(GRPC, ask).ask(Some(&view), check(&ok));
    assert!(call.grpc && call.path == "/envoy.service.auth.v3.Authorization/Check");
    assert_eq!(call.headers.get("grpc-timeout").expect("timeout"), "2000m");
    let question = auth::CheckRequest::decode(&call.body[5..]).expect("question").attributes.expect("attributes");
    assert_eq!(question.source.expect("source").principal, "spiffe://t/ns/shop/sa/web");
    assert_eq!(question.context_extensions.get("room").map(String::as_str), Some("blue"));
    let http = question.request.and_then(|request| request.http).expect("request");
    assert_eq!((http.method.as_str(), http.path.as_str(), http.host.as_str()), ("POST", "/told?b=c", "shop.test"));
    assert_eq!(http.headers.get("x-a").map(String::as_str), Some("1,2"));
    assert_eq!(http.headers.get(":path").map(String::as_str), Some("/told?b=c"));
    assert_eq!((http.body.as_str(), http.size), ("0123456789", 12));
    let changed = decision.changed.expect("changes");
    assert_eq!(changed.headers.get("x-user").expect("x-user"), "amy");
    assert!(!changed.headers.contains_key("x-a") && !changed.headers.contains_key("host"));
    assert_eq!(changed.path.as_deref(), Some("/told"));
    assert_eq!(decision.asked.as_ref().map_or(0, |asked| asked.external.len()), 1);
}

#[test]
fn by_grpc_answers_that_are_none_are_failures() {
    let denied = |response| auth::CheckResponse {
        status: Some(proto::google::rpc::Status { code: 7, ..Default::default() }),
        http_response: response,
        ..auth::CheckResponse::default()
    };
    let ask = || Ask::new("GET x/a");
    let plain = Waiting::new(GRPC, ask()).ask(None, check(&denied(None))).1;
    assert_eq!(reply(plain).0, 403);
    let body = auth::DeniedHttpResponse {
        status: Some(proto::envoy::r#type::v3::HttpStatus { code: 429 }),
        headers: vec![option("x-why", "often")],
        body: "slow down".to_owned(),
    };
    let response = auth::check_response::HttpResponse::DeniedResponse(body);
    let told = Waiting::new(GRPC, ask()).ask(None, check(&denied(Some(response)))).1;
    assert_eq!(
        reply(told),
        (429, "ext_authz_denied".to_owned(), "slow down".to_owned(), vec!["x-why: often".to_owned()])
    );
    let mut broken = check(&auth::CheckResponse::default()).expect("answer");
    broken.body = Bytes::from_static(b"\0\0\0\0\x09xyz");
    for failure in [Some(broken), answer(200, &[("grpc-status", "13")], ""), answer(200, &[], ""), answer(503, &[], "")]
    {
        let (_, decision) = Waiting::new(GRPC, ask()).ask(None, failure);
        assert_eq!(decision.guards(), [Guard::ExternalError]);
    }
}

#[test]
fn routes_and_policies_say_who_is_asked_about() {
    let waiting = Waiting::new(GRPC, Ask::new("GET x/free"));
    let facts = waiting.ask.facts();
    assert!(matches!(begin(waiting.around(&facts), &mut Dice::new(1)), Step::Done(_)));
    let waiting = Waiting::new(GRPC, Ask::new("GET x/told"));
    let facts = waiting.ask.facts();
    let Step::Ask(pending) = begin(waiting.around(&facts), &mut Dice::new(1)) else { panic!("asks") };
    assert_eq!(asking(&pending).body(), None, "the route wants no body shown");
    // As Istio writes CUSTOM policies: shadow rules find the requests.
    let filters = format!(
        r#"- name: envoy.filters.http.rbac
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
    shadow_rules_stat_prefix: find_
    shadow_rules:
      action: DENY
      policies:
        ask-me: {{permissions: [{{url_path: {{path: {{prefix: /c}}}}}}], principals: [{{any: true}}]}}
{}"#,
        filter(&format!(
            "{GRPC}    filter_enabled_metadata:
      filter: envoy.filters.http.rbac
      path: [{{key: find_shadow_effective_policy_id}}]
      value: {{string_match: {{prefix: ask-}}}}
"
        ))
    );
    let world = World::new(ROUTES, &filters);
    let asked = |line: &str| {
        let ask = Ask::new(line);
        let decision = world.decide(&ask, &mut Dice::new(1)).0;
        decision.asked.map_or(0, |asked| asked.unasked.len())
    };
    assert_eq!((asked("GET x/c1"), asked("GET x/d")), (1, 0));
}
