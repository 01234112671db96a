//! Lines that Envoy 1.40 wrote for an exchange are the lines that a record of the same exchange gives; and what a record
//! adds to the metrics.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use engine::access_log::{AccessLog, LogFormat, LogSink};
use engine::chains::ChainTable;
use engine::facts::Protocol;
use engine::format::{JsonNode, JsonTemplate, Template};
use engine::listener::Direction;
use engine::reply::Flags;
use engine::{Address, ConnectionFacts, Listener, Peer, Plan};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use proto::envoy::config::core::v3::Node;
use telemetry::accesslog::Sinks;

use super::line::{ENVOY_DEFAULT, Log};
use super::record::{Downstream, Kind, Record};
use super::{Tally, Watchtower};

/// Istio's default format (istio.io, "Default access log format").
const ISTIO_DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
    \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
    %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn listener(direction: Direction) -> Arc<Listener> {
    Arc::new(Listener {
        name: "in".into(),
        address: Address::Socket(address("127.0.0.1:18881")),
        additional_addresses: Vec::new(),
        namespace: None,
        ipv4_compat: Vec::new(),
        socket_modes: Vec::new(),
        bind: true,
        use_original_dst: false,
        direction,
        listener_filters: Vec::new(),
        listener_filters_timeout: None,
        continue_on_timeout: false,
        chains: ChainTable::default(),
        buffer_limit: 1 << 20,
        access_log: Vec::new(),
        backlog: None,
        reuse_port: true,
        transparent: false,
        freebind: false,
        ignores_limit: false,
        bypasses_overload: false,
        exact_balance: false,
        socket_options: Vec::new(),
        tcp_keepalive: None,
        stat_prefix: None,
        metadata: engine::metadata::Metadata::new(),
        limit: None,
        version: 0,
    })
}

fn downstream(remote: &str, direction: Direction) -> Arc<Downstream> {
    let facts = ConnectionFacts::between(address(remote), address("127.0.0.1:18881"), 4);
    Arc::new(Downstream { facts, listener: listener(direction), chain: None, own_uri: None })
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let header = |(name, value): &(&'static str, &str)| {
        (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    pairs.iter().map(header).collect()
}

fn record(millis: u64, remote: &str) -> Record {
    let downstream = downstream(remote, Direction::Inbound);
    let mut record = Record::begin(Kind::Http, &downstream, UNIX_EPOCH + Duration::from_millis(millis), Instant::now());
    record.protocol = Some(Protocol::Http11);
    record.authority = Some("127.0.0.1:18881".into());
    record.complete = true;
    record
}

/// The endpoint refused the connection.
fn refused_connection() -> Record {
    let mut record = record(1_795_257_170_346, "127.0.0.1:59530");
    record.method = Some(Method::POST);
    record.original_path = Some("/dead".into());
    record.status = Some(StatusCode::SERVICE_UNAVAILABLE);
    record.flags = Flags::UPSTREAM_CONNECTION_FAILURE;
    let reason = "delayed_connect_error:_Connection_refused";
    let details = format!("upstream_reset_before_response_started{{remote_connection_failure|{reason}}}");
    record.details = Some(details.into());
    record.upstream.transport_failure = Some(reason.into());
    record.upstream.cluster_name = Some("dead".into());
    record.upstream.endpoint = Some(endpoint("127.0.0.1:1"));
    record.upstream.attempts = 1;
    record.bytes_received = 3;
    record.bytes_sent = 98;
    record.duration = Duration::from_micros(412);
    record.request_headers =
        headers(&[("user-agent", "curly \"quote\" \\ é"), ("x-request-id", "f1031a1f-916a-4f8c-9a5e-9e98001b68bb")]);
    record
}

/// The route rewrote the path and the endpoint answered.
fn rewritten_and_answered() -> Record {
    let mut record = record(1_795_257_170_379, "127.0.0.1:59580");
    record.method = Some(Method::POST);
    record.original_path = Some("/admin/ready".into());
    record.path = Some("/ready".into());
    record.status = Some(StatusCode::OK);
    record.details = Some("via_upstream".into());
    record.upstream.cluster_name = Some("adm".into());
    record.upstream.endpoint = Some(endpoint("127.0.0.1:19991"));
    record.upstream.local = Some(address("127.0.0.1:54808"));
    record.upstream.attempts = 1;
    record.upstream.service_time = Some(Duration::from_micros(371));
    record.bytes_received = 3;
    record.bytes_sent = 5;
    record.request_complete = Some(Duration::from_micros(679));
    record.response_begun = Some(Duration::from_micros(1_050));
    record.duration = Duration::from_micros(1_250);
    record.request_headers =
        headers(&[("user-agent", "curly \"quote\" \\ é"), ("x-request-id", "e7378054-ebdf-4d24-8db5-9901ca6c55a4")]);
    record
}

fn endpoint(at: &str) -> Arc<engine::Endpoint> {
    Arc::new(engine::Endpoint {
        address: Address::Socket(address(at)),
        hostname: "".into(),
        weight: 1,
        health: engine::endpoint::HealthStatus::Healthy,
        metadata: Arc::default(),
        locality: Arc::default(),
        priority: 0,
        check: None,
        state: Arc::default(),
    })
}

/// What a log of this format holds after the records.
fn written(format: LogFormat, records: &[Record]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let sinks = Sinks::start(1).unwrap();
    let config = AccessLog { sink: LogSink::File(path.clone().into()), format, filter: None };
    let log = Log::open(&config, &sinks).unwrap();
    let mut scratch = String::new();
    for record in records {
        log.write(record, 0, &mut engine::Dice::new(1), &mut scratch);
    }
    sinks.finish();
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn envoys_default_line() {
    let expected = "[2026-11-21T10:32:50.346Z] \"POST /dead HTTP/1.1\" 503 UF 3 98 0 - \"-\" \"curly \"quote\" \\ é\" \
        \"f1031a1f-916a-4f8c-9a5e-9e98001b68bb\" \"127.0.0.1:18881\" \"127.0.0.1:1\"\n\
        [2026-11-21T10:32:50.379Z] \"POST /admin/ready HTTP/1.1\" 200 - 3 5 1 0 \"-\" \"curly \"quote\" \\ é\" \
        \"e7378054-ebdf-4d24-8db5-9901ca6c55a4\" \"127.0.0.1:18881\" \"127.0.0.1:19991\"\n";
    assert_eq!(written(LogFormat::Default, &[refused_connection(), rewritten_and_answered()]), expected);
    assert!(Template::parse(ENVOY_DEFAULT).is_ok());
}

#[test]
fn envoys_line_of_a_tcp_connection() {
    let downstream = downstream("127.0.0.1:60000", Direction::Inbound);
    let begun = UNIX_EPOCH + Duration::from_millis(1_795_257_170_411);
    let mut record = Record::begin(Kind::Tcp, &downstream, begun, Instant::now());
    record.upstream.endpoint = Some(endpoint("127.0.0.1:19991"));
    record.bytes_received = 84;
    record.bytes_sent = 224;
    record.duration = Duration::from_micros(700);
    assert_eq!(
        written(LogFormat::Default, &[record]),
        "[2026-11-21T10:32:50.411Z] \"- - -\" 0 - 84 224 0 - \"-\" \"-\" \"-\" \"-\" \"127.0.0.1:19991\"\n"
    );
}

#[test]
fn istios_default_line() {
    let format = LogFormat::Text(Template::parse(ISTIO_DEFAULT).unwrap());
    assert_eq!(
        written(format, &[refused_connection(), rewritten_and_answered()]),
        "[2026-11-21T10:32:50.346Z] \"POST /dead HTTP/1.1\" 503 UF upstream_reset_before_response_started\
         {remote_connection_failure|delayed_connect_error:_Connection_refused} - \
         \"delayed_connect_error:_Connection_refused\" 3 98 0 - \"-\" \"curly \"quote\" \\ é\" \
         \"f1031a1f-916a-4f8c-9a5e-9e98001b68bb\" \"127.0.0.1:18881\" \"127.0.0.1:1\" dead - 127.0.0.1:18881 \
         127.0.0.1:59530 - -\n\
         [2026-11-21T10:32:50.379Z] \"POST /admin/ready HTTP/1.1\" 200 - via_upstream - \"-\" 3 5 1 0 \"-\" \
         \"curly \"quote\" \\ é\" \"e7378054-ebdf-4d24-8db5-9901ca6c55a4\" \"127.0.0.1:18881\" \"127.0.0.1:19991\" adm \
         127.0.0.1:54808 127.0.0.1:18881 127.0.0.1:59580 - -\n"
    );
}

fn text(source: &str) -> JsonNode {
    JsonNode::Text(Template::parse(source).unwrap())
}

/// The same keys given to Envoy 1.40: it types and prints them like this.
#[test]
fn envoys_json_line() {
    let members = vec![
        ("bool", JsonNode::Flag(true)),
        ("cd", text("%COMMON_DURATION(DS_RX_BEG:US_TX_END:us)%")),
        ("code", text("%RESPONSE_CODE%")),
        ("dlanp", text("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%")),
        ("dlap", text("%DOWNSTREAM_LOCAL_PORT%")),
        ("dur", text("%DURATION%")),
        ("flags", text("%RESPONSE_FLAGS%")),
        ("grpc", text("%GRPC_STATUS%")),
        ("literal", text("plain")),
        ("miss", text("%REQ(nope?alsonope)%")),
        ("mixed", text("code=%RESPONSE_CODE% %DURATION%")),
        (
            "nested",
            JsonNode::Object(vec![
                ("list".into(), JsonNode::List(vec![text("%PROTOCOL%"), text("x"), text("%BYTES_SENT%")])),
                ("method".into(), text("%REQ(:METHOD)%")),
            ]),
        ),
        ("nul", JsonNode::Null),
        ("num", JsonNode::Number(12.5)),
        ("path2", text("%PATH(WQ:ORIG)%")),
        ("pct", text("100%%")),
        ("respdur", text("%RESPONSE_DURATION%")),
        ("resptx", text("%RESPONSE_TX_DURATION%")),
        ("start_time", text("%START_TIME%")),
        ("st_6", text("%START_TIME(%Y/%m/%dT%H:%M:%S.%6f%z %s)%")),
        ("ua", text("%REQ(USER-AGENT)%")),
        ("ua5", text("%REQ(USER-AGENT):5%")),
        ("upra", text("%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%")),
        ("uprp", text("%UPSTREAM_REMOTE_PORT%")),
    ];
    let members = members.into_iter().map(|(key, node)| (Arc::from(key), node)).collect();
    let template = JsonTemplate { root: JsonNode::Object(members), omit_empty: false };
    let without_nulls = JsonTemplate { omit_empty: true, ..template.clone() };
    assert_eq!(
        written(LogFormat::Json(template), &[rewritten_and_answered()]),
        "{\"bool\":true,\"cd\":679,\"code\":200,\"dlanp\":\"127.0.0.1\",\"dlap\":18881,\"dur\":1,\
         \"flags\":\"-\",\"grpc\":null,\"literal\":\"plain\",\"miss\":null,\"mixed\":\"code=200 1\",\
         \"nested\":{\"list\":[\"HTTP/1.1\",\"x\",5],\"method\":\"POST\"},\"nul\":null,\"num\":12.5,\
         \"path2\":\"/admin/ready\",\"pct\":\"100%\",\"respdur\":1,\"resptx\":0,\
         \"start_time\":\"2026-11-21T10:32:50.379Z\",\"st_6\":\"2026/11/21T10:32:50.379000+0000 1795257170\",\
         \"ua\":\"curly \\\"quote\\\" \\\\ é\",\"ua5\":\"curly\",\"upra\":\"127.0.0.1\",\"uprp\":19991}\n"
    );
    let line = written(LogFormat::Json(without_nulls), &[rewritten_and_answered()]);
    assert!(!line.contains("null"), "{line}");
    assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok());
}

#[test]
fn filters_choose() {
    use engine::access_log::{Comparison, ComparisonOp, LogFilter};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("errors.log");
    let sinks = Sinks::start(1).unwrap();
    let at_least = LogFilter::Status(Comparison { op: ComparisonOp::AtLeast, value: 500 });
    let flag = LogFilter::Flags(vec!["UF".into()]);
    let config = AccessLog {
        sink: LogSink::File(path.clone().into()),
        format: LogFormat::Text(Template::parse("%RESPONSE_CODE% %DYNAMIC_METADATA(tulle:id)%\n").unwrap()),
        filter: Some(LogFilter::And(vec![at_least, flag])),
    };
    let log = Log::open(&config, &sinks).unwrap();
    for record in [refused_connection(), rewritten_and_answered()] {
        log.write(&record, 0, &mut engine::Dice::new(1), &mut String::new());
    }
    sinks.finish();
    assert_eq!(std::fs::read_to_string(path).unwrap(), "503 f1031a1f-916a-4f8c-9a5e-9e98001b68bb\n");
}

fn tally() -> Rc<Tally> {
    let metadata = proto::json::parse::<Node>(
        r#"{"id": "sidecar~10.0.0.7~cart-1.shop~shop.svc.cluster.local",
            "metadata": {"NAME": "cart-1", "NAMESPACE": "shop", "WORKLOAD_NAME": "cart", "SERVICE_ACCOUNT": "cart",
                         "CLUSTER_ID": "Kubernetes", "LABELS": {"app": "cart", "version": "v1"}}}"#,
        proto::json::Format::Json,
    );
    Rc::new(Tally::new(Watchtower::new(&metadata.unwrap(), 1).unwrap(), 0))
}

fn istio_lines(tally: &Tally) -> String {
    let selection = telemetry::exposition::Selection::default();
    let format = telemetry::exposition::Format::Prometheus;
    let page = telemetry::exposition::prometheus(&tally.tower().registry, format, &selection);
    let wanted = |line: &&str| {
        (line.starts_with("istio_requests_total") || line.starts_with("istio_tcp") || line.starts_with("tulle_authz"))
            && !line.contains(" 0")
    };
    page.lines().filter(wanted).map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_denied_stranger_and_a_known_caller() {
    let tally = tally();
    let plan = Plan::default();
    let mut stranger = rewritten_and_answered();
    stranger.status = Some(StatusCode::FORBIDDEN);
    stranger.details = Some("rbac_access_denied_matched_policy[ns[shop]-policy[cart]-rule[0]]".into());
    stranger.rbac = vec![engine::rbac::RbacReport {
        stat_prefix: None,
        enforced: Some(engine::rbac::Verdict {
            allowed: false,
            policy: Some("ns[shop]-policy[cart]-rule[0]".into()),
            log_hint: None,
        }),
        shadow_stat_prefix: None,
        shadow: None,
    }];
    assert_eq!(stranger.denied_by(), Some("ns[shop]-policy[cart]-rule[0]"));
    tally.finish(&plan, &stranger);

    let mut caller = rewritten_and_answered();
    let mut facts = caller.downstream.facts.clone();
    let uri_sans = vec![Arc::from("spiffe://cluster.local/ns/shop/sa/web")];
    facts.peer = Some(Arc::new(Peer { uri_sans, validated: true, ..Peer::default() }));
    caller.downstream =
        Arc::new(Downstream { facts, listener: listener(Direction::Inbound), chain: None, own_uri: None });
    let web = r#"{"id": "w", "metadata": {"NAME": "web-1", "NAMESPACE": "lies", "LABELS": {"app": "web"}}}"#;
    let web = super::party::Own::of(&proto::json::parse::<Node>(web, proto::json::Format::Json).unwrap());
    let mut introduced = HeaderMap::new();
    web.introduce(&mut introduced);
    caller.peer = super::record::PeerMetadata::take(&mut introduced, &super::record::PeerMetadata::default());
    assert!(introduced.is_empty());
    for _ in 0..3 {
        tally.finish(&plan, &caller);
    }
    insta::assert_snapshot!(istio_lines(&tally));
}

#[test]
fn a_tcp_connection_counts_while_it_is_open() {
    let tally = tally();
    let plan = Plan::default();
    let downstream = downstream("10.0.0.9:40000", Direction::Inbound);
    let mut record = Record::begin(Kind::Tcp, &downstream, UNIX_EPOCH, Instant::now());
    record.upstream.local = Some(address("127.0.0.1:50000"));
    record.upstream.cluster_name = Some("inbound|9000||".into());
    let flow = tally.open(&plan, &record);
    flow.progress(10, 20);
    let open = |tally: &Tally| {
        let mut open = 0;
        tally.tower().registry.requests().totals(|_, totals| open += totals.open);
        open
    };
    assert_eq!(open(&tally), 1);
    flow.finish(&plan, &record);
    assert_eq!(open(&tally), 0);
    insta::assert_snapshot!(istio_lines(&tally));
}

/// What an exchange costs the reporting side once its handles are known: no allocation worth a page.
#[test]
fn a_thousand_exchanges_make_one_edge() {
    let tally = tally();
    let plan = Plan::default();
    let record = rewritten_and_answered();
    for _ in 0..1_000 {
        tally.finish(&plan, &record);
    }
    let mut edges = 0;
    tally.tower().registry.requests().totals(|_, totals| {
        edges += 1;
        assert_eq!((totals.requests, totals.failures), (1_000, 0));
    });
    assert_eq!(edges, 1);
}

#[test]
fn watchers_see_what_happened() {
    let tally = tally();
    let mut watch = tally.tower().tap.watch(telemetry::tap::Filter::default(), 10).unwrap();
    tally.finish(&Plan::default(), &refused_connection());
    let event = watch.events.try_recv().unwrap();
    assert_eq!((event.status, event.flags.as_str(), event.path.as_str()), (503, "UF", "/dead"));
    assert_eq!(event.destination.workload, "cart");
    assert!(event.is_error());
}

/// Every series of our own is in the reference.
#[test]
fn the_reference_names_our_series() {
    let reference = include_str!("../../../../docs/reference/telemetry.md");
    let source = include_str!("watchtower.rs");
    let names: std::collections::BTreeSet<&str> =
        source.split('"').filter(|text| text.starts_with("tulle_") && !text.contains([' ', '{'])).collect();
    assert!(names.len() > 8, "{names:?}");
    for name in names {
        assert!(reference.contains(&format!("`{name}`")), "{name} is missing in docs/reference/telemetry.md");
    }
}

#[test]
fn what_outlier_detection_did_is_written_as_envoy_does() {
    use engine::outlier::{Cause, Event, EventKind, SeenRates};
    let now = std::time::UNIX_EPOCH + Duration::from_millis(1_795_257_170_313);
    let event = |kind, since, rates| Event { endpoint: endpoint("10.0.0.1:80"), kind, ejections: 2, since, rates };
    let said = |event: &Event| super::outlier::line("a \"b\"", event, now).map(|line| String::from_utf8(line).unwrap());
    let ejected = |cause| EventKind::Ejected { cause, enforced: true };
    let begin = r#","cluster_name":"a \"b\"","upstream_url":"10.0.0.1:80","action":"#;
    assert_eq!(
        said(&event(ejected(Cause::ConsecutiveGateway), None, None)).unwrap(),
        format!(
            r#"{{"type":"CONSECUTIVE_GATEWAY_FAILURE","timestamp":"2026-11-21T10:32:50.313Z"{begin}"EJECT","num_ejections":2,"enforced":true,"eject_consecutive_event":{{}}}}"#
        ) + "\n"
    );
    assert_eq!(
        said(&event(EventKind::Returned, Some(Duration::from_millis(1999)), None)).unwrap(),
        format!(
            r#"{{"type":"CONSECUTIVE_5XX","timestamp":"2026-11-21T10:32:50.313Z","secs_since_last_action":"1"{begin}"UNEJECT","num_ejections":2,"enforced":false}}"#
        ) + "\n"
    );
    let rates = SeenRates { own: 10.9, bounds: Some((66.6, -3.0)) };
    let line = said(&event(ejected(Cause::SuccessRate), None, Some(rates))).unwrap();
    let line = line.trim_end();
    assert!(line.ends_with(r#""enforced":true,"eject_success_rate_event":{"host_success_rate":10,"cluster_average_success_rate":66,"cluster_success_rate_ejection_threshold":0}}"#), "{line}");
    assert_eq!(said(&event(EventKind::Overflow { cause: Cause::SuccessRate }, None, None)), None);
}
