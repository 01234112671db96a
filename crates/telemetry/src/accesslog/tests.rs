//! Lines that Envoy 1.40 wrote, and the exchanges that made it write them.

use std::time::UNIX_EPOCH;

use super::*;

/// An exchange made of plain fields.
#[derive(Default)]
struct Plain {
    millis: u64,
    fields: Vec<(Field, Value<'static>)>,
    request: Vec<(&'static str, &'static [u8])>,
    response: Vec<(&'static str, &'static [u8])>,
    moments: Vec<(Moment, u64)>,
    flags: Flags,
}

impl Exchange for Plain {
    fn started(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.millis)
    }

    fn moment(&self, moment: Moment) -> Option<Duration> {
        let found = self.moments.iter().find(|(held, _)| *held == moment);
        found.map(|(_, micros)| Duration::from_micros(*micros))
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    fn field(&self, field: Field) -> Value<'_> {
        self.fields.iter().find(|(held, _)| *held == field).map_or(Value::Missing, |(_, value)| value.clone())
    }

    fn request_header(&self, name: &HeaderName) -> Option<&[u8]> {
        self.request.iter().find(|(held, _)| held == name).map(|(_, value)| *value)
    }

    fn response_header(&self, name: &HeaderName) -> Option<&[u8]> {
        self.response.iter().find(|(held, _)| held == name).map(|(_, value)| *value)
    }

    fn response_trailer(&self, _: &HeaderName) -> Option<&[u8]> {
        None
    }
}

fn text(text: &'static str) -> Value<'static> {
    Value::text(Some(text))
}

fn http(millis: u64, fields: &[(Field, Value<'static>)], request: &[(&'static str, &'static [u8])]) -> Plain {
    let mut plain = Plain { millis, fields: fields.to_vec(), request: request.to_vec(), ..Plain::default() };
    plain.moments = vec![(Moment::RequestBegun, 0), (Moment::End, 412)];
    plain.fields.extend([
        (Field::Authority, text("127.0.0.1:18881")),
        (Field::DownstreamLocalAddress, text("127.0.0.1:18881")),
    ]);
    plain
}

fn line(format: &Format, exchange: &Plain) -> String {
    let mut out = Vec::new();
    format.write(exchange, &mut out);
    String::from_utf8(out).unwrap()
}

fn refused_connection() -> Plain {
    let mut exchange = http(
        1_795_257_170_346,
        &[
            (Field::Method, text("POST")),
            (Field::Path, text("/dead")),
            (Field::Protocol, text("HTTP/1.1")),
            (Field::ResponseCode, Value::Number(503)),
            (
                Field::ResponseCodeDetails,
                text(
                    "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}",
                ),
            ),
            (Field::UpstreamTransportFailureReason, text("delayed_connect_error:_Connection_refused")),
            (Field::BytesReceived, Value::Number(3)),
            (Field::BytesSent, Value::Number(98)),
            (Field::UpstreamHost, text("127.0.0.1:1")),
            (Field::UpstreamCluster, text("dead")),
            (Field::DownstreamRemoteAddress, text("127.0.0.1:59530")),
        ],
        &[("user-agent", "curly \"quote\" \\ é".as_bytes()), ("x-request-id", b"f1031a1f-916a-4f8c-9a5e-9e98001b68bb")],
    );
    exchange.flags = Flags::UPSTREAM_CONNECTION_FAILURE;
    exchange
}

fn rewritten_and_answered() -> Plain {
    let mut exchange = http(
        1_795_257_170_379,
        &[
            (Field::Method, text("POST")),
            (Field::Path, text("/ready")),
            (Field::OriginalPath, text("/admin/ready")),
            (Field::Protocol, text("HTTP/1.1")),
            (Field::ResponseCode, Value::Number(200)),
            (Field::ResponseCodeDetails, text("via_upstream")),
            (Field::BytesReceived, Value::Number(3)),
            (Field::BytesSent, Value::Number(5)),
            (Field::UpstreamHost, text("127.0.0.1:19991")),
            (Field::UpstreamCluster, text("adm")),
            (Field::UpstreamLocalAddress, text("127.0.0.1:54808")),
            (Field::DownstreamRemoteAddress, text("127.0.0.1:59580")),
            (Field::RouteName, text("adm")),
        ],
        &[("user-agent", "curly \"quote\" \\ é".as_bytes()), ("x-request-id", b"e7378054-ebdf-4d24-8db5-9901ca6c55a4")],
    );
    exchange.response = vec![("x-envoy-upstream-service-time", b"0")];
    exchange.moments = vec![
        (Moment::RequestBegun, 0),
        (Moment::SendComplete, 679),
        (Moment::AnswerBegun, 1_050),
        (Moment::ReplyComplete, 1_200),
        (Moment::End, 1_250),
    ];
    exchange
}

#[test]
fn envoys_default_line() {
    let format = Format::envoy_default();
    assert_eq!(
        line(&format, &refused_connection()),
        "[2026-11-21T10:32:50.346Z] \"POST /dead HTTP/1.1\" 503 UF 3 98 0 - \"-\" \"curly \"quote\" \\ é\" \
         \"f1031a1f-916a-4f8c-9a5e-9e98001b68bb\" \"127.0.0.1:18881\" \"127.0.0.1:1\"\n"
    );
    assert_eq!(
        line(&format, &rewritten_and_answered()),
        "[2026-11-21T10:32:50.379Z] \"POST /admin/ready HTTP/1.1\" 200 - 3 5 1 0 \"-\" \"curly \"quote\" \\ é\" \
         \"e7378054-ebdf-4d24-8db5-9901ca6c55a4\" \"127.0.0.1:18881\" \"127.0.0.1:19991\"\n"
    );
}

#[test]
fn envoys_line_of_a_tcp_connection() {
    let mut exchange = Plain { millis: 1_795_257_170_411, ..Plain::default() };
    exchange.moments = vec![(Moment::RequestBegun, 0), (Moment::End, 700)];
    exchange.fields = vec![
        (Field::ResponseCode, Value::Number(0)),
        (Field::BytesReceived, Value::Number(84)),
        (Field::BytesSent, Value::Number(224)),
        (Field::UpstreamHost, text("127.0.0.1:19991")),
    ];
    assert_eq!(
        line(&Format::envoy_default(), &exchange),
        "[2026-11-21T10:32:50.411Z] \"- - -\" 0 - 84 224 0 - \"-\" \"-\" \"-\" \"-\" \"127.0.0.1:19991\"\n"
    );
}

#[test]
fn istios_default_line() {
    let format = Format::text(ISTIO_DEFAULT, false).unwrap();
    assert_eq!(
        line(&format, &refused_connection()),
        "[2026-11-21T10:32:50.346Z] \"POST /dead HTTP/1.1\" 503 UF upstream_reset_before_response_started\
         {remote_connection_failure|delayed_connect_error:_Connection_refused} - \
         \"delayed_connect_error:_Connection_refused\" 3 98 0 - \"-\" \"curly \"quote\" \\ é\" \
         \"f1031a1f-916a-4f8c-9a5e-9e98001b68bb\" \"127.0.0.1:18881\" \"127.0.0.1:1\" dead - 127.0.0.1:18881 \
         127.0.0.1:59530 - -\n"
    );
    assert_eq!(
        line(&format, &rewritten_and_answered()),
        "[2026-11-21T10:32:50.379Z] \"POST /admin/ready HTTP/1.1\" 200 - via_upstream - \"-\" 3 5 1 0 \"-\" \
         \"curly \"quote\" \\ é\" \"e7378054-ebdf-4d24-8db5-9901ca6c55a4\" \"127.0.0.1:18881\" \"127.0.0.1:19991\" adm \
         127.0.0.1:54808 127.0.0.1:18881 127.0.0.1:59580 - adm\n"
    );
}

/// The same keys, given to Envoy 1.40 in this order: it sorts them, types them and prints them like this.
#[test]
fn envoys_json_line() {
    let format = serde_json::json!({
        "start_time": "%START_TIME%", "code": "%RESPONSE_CODE%", "mixed": "code=%RESPONSE_CODE% %DURATION%",
        "literal": "plain", "num": 12.5, "bool": true, "nul": null,
        "nested": {"method": "%REQ(:METHOD)%", "list": ["%PROTOCOL%", "x", "%BYTES_SENT%"]},
        "flags": "%RESPONSE_FLAGS%", "dur": "%DURATION%", "respdur": "%RESPONSE_DURATION%",
        "resptx": "%RESPONSE_TX_DURATION%", "cd": "%COMMON_DURATION(DS_RX_BEG:US_TX_END:us)%",
        "ua": "%REQ(USER-AGENT)%", "ua5": "%REQ(USER-AGENT):5%", "miss": "%REQ(nope?alsonope)%",
        "upra": "%UPSTREAM_HOST%", "dlanp": "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%",
        "dlap": "%DOWNSTREAM_LOCAL_PORT%", "pct": "100%%", "path2": "%PATH(WQ:ORIG)%", "grpc": "%GRPC_STATUS%",
    });
    let expected = "{\"bool\":true,\"cd\":679,\"code\":200,\"dlanp\":\"127.0.0.1\",\"dlap\":18881,\"dur\":1,\
        \"flags\":\"-\",\"grpc\":null,\"literal\":\"plain\",\"miss\":null,\"mixed\":\"code=200 1\",\
        \"nested\":{\"list\":[\"HTTP/1.1\",\"x\",5],\"method\":\"POST\"},\"nul\":null,\"num\":\"12.5\",\
        \"path2\":\"/admin/ready\",\"pct\":\"100%\",\"respdur\":1,\"resptx\":0,\
        \"start_time\":\"2026-11-21T10:32:50.379Z\",\"ua\":\"curly \\\"quote\\\" \\\\ é\",\"ua5\":\"curly\",\
        \"upra\":\"127.0.0.1:19991\"}\n";
    assert_eq!(line(&Format::json(&format, false).unwrap(), &rewritten_and_answered()), expected);
    let without_nulls = line(&Format::json(&format, true).unwrap(), &rewritten_and_answered());
    assert!(!without_nulls.contains("null"), "{without_nulls}");
    assert!(serde_json::from_str::<serde_json::Value>(&without_nulls).is_ok());
}

/// A value that is not UTF-8 as a whole is written byte by byte (seen with Envoy 1.40).
#[test]
fn bytes_that_are_no_text() {
    let mut exchange = refused_connection();
    exchange.request = vec![("user-agent", b"b\xff\xc3\xa9\tx\x80</script>&'")];
    let format = Format::json(&serde_json::json!({"ua": "%REQ(USER-AGENT)%"}), false).unwrap();
    assert_eq!(line(&format, &exchange), "{\"ua\":\"b\\u00ff\\u00c3\\u00a9\\u0009x\\u0080</script>&'\"}\n");
}

#[test]
fn what_is_no_format_is_named() {
    let error = |format: &str| Format::text(format, false).unwrap_err().to_string();
    assert_eq!(error("%NOPE%"), "unknown access log operator %NOPE%");
    assert_eq!(error("50% of"), "`% of` begins no operator: write %% for a percent sign");
    assert_eq!(error("%REQ()%"), "access log operator %REQ%: needs a header name in parentheses");
    assert_eq!(error("%REQ(a b)%"), "access log operator %REQ%: `a b` is no header name");
    assert_eq!(error("%REQ(x):y%"), "`%REQ(x):y%` begins no operator: write %% for a percent sign");
    assert!(error("%COMMON_DURATION(DS_RX_BEG:X:ms)%").contains("`X` is no point in an exchange"));
    assert!(Format::json(&serde_json::json!([]), false).is_err());
}

#[test]
fn formats_say_what_they_need() {
    let format = Format::text("%REQ(a)% %RESP(b)%", false).unwrap();
    assert!(format.wants_response_headers() && !format.wants_response_trailers());
    let format = Format::json(&serde_json::json!({"x": {"y": "%REQ(a)% %TRAILER(b)%"}}), false).unwrap();
    assert!(!format.wants_response_headers() && format.wants_response_trailers());
}
