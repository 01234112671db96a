//! Formats: text and JSON with operators in them, parsed once.

use std::sync::LazyLock;

use http::HeaderName;

use super::clock::TimeFormat;
use super::json::Node;
use super::operator::{Ask, GrpcForm, MetadataKind, Moment, Operator, write_number};
use super::{Exchange, Field, Value};

/// A parsed format.
#[derive(Debug, Clone, PartialEq)]
pub struct Format {
    body: Body,
    /// Write nothing instead of `-` (text), leave the key out instead of `null` (JSON).
    omit_empty: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Body {
    Text(Template),
    Json(Node),
}

/// What is wrong with a format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A `%` that begins no operator; write `%%` for a percent sign.
    #[error("`{0}` begins no operator: write %% for a percent sign")]
    Stray(String),
    /// No such operator.
    #[error("unknown access log operator %{0}%")]
    Unknown(String),
    /// The operator's parameter is missing or wrong.
    #[error("access log operator %{operator}%: {reason}")]
    Parameter {
        /// The operator.
        operator: String,
        /// What is wrong.
        reason: String,
    },
    /// A JSON format must be an object.
    #[error("a JSON access log format must be an object")]
    NoObject,
}

/// Text with operators.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Template(pub(super) Vec<Piece>);

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Literal(String),
    Operator(Operator),
}

impl Format {
    /// A text format, as it stands in `text_format_source` or in `path`'s default. It ends its lines itself.
    ///
    /// # Errors
    /// The first thing that is no format.
    pub fn text(text: &str, omit_empty: bool) -> Result<Self, FormatError> {
        Ok(Self { body: Body::Text(Template::parse(text)?), omit_empty })
    }

    /// A JSON format (`json_format`): an object whose texts hold operators; each line ends with a line feed.
    ///
    /// # Errors
    /// The first thing that is no format.
    pub fn json(object: &serde_json::Value, omit_empty: bool) -> Result<Self, FormatError> {
        if !object.is_object() {
            return Err(FormatError::NoObject);
        }
        Ok(Self { body: Body::Json(Node::parse(object)?), omit_empty })
    }

    /// Envoy's default format.
    pub fn envoy_default() -> Self {
        static FORMAT: LazyLock<Option<Format>> = LazyLock::new(|| Format::text(super::ENVOY_DEFAULT, false).ok());
        FORMAT.clone().unwrap_or(Self { body: Body::Text(Template::default()), omit_empty: false })
    }

    /// Appends the line of one exchange.
    pub fn write(&self, exchange: &dyn Exchange, out: &mut Vec<u8>) {
        match &self.body {
            Body::Text(template) => template.write(exchange, self.empty(), out),
            Body::Json(node) => {
                node.write(exchange, self.omit_empty, out);
                out.push(b'\n');
            }
        }
    }

    /// Whether some operator reads response headers, so that they must be kept.
    pub fn wants_response_headers(&self) -> bool {
        self.any(&|operator| is_response(&operator.ask) || operator.otherwise.as_ref().is_some_and(is_response))
    }

    /// Whether some operator reads response trailers, so that they must be kept.
    pub fn wants_response_trailers(&self) -> bool {
        let is_trailer = |ask: &Ask| matches!(ask, Ask::Trailer(_));
        self.any(&|operator| is_trailer(&operator.ask) || operator.otherwise.as_ref().is_some_and(is_trailer))
    }

    fn any(&self, test: &dyn Fn(&Operator) -> bool) -> bool {
        match &self.body {
            Body::Text(template) => template.any(test),
            Body::Json(node) => node.any(test),
        }
    }

    fn empty(&self) -> &'static [u8] {
        if self.omit_empty { b"" } else { b"-" }
    }
}

fn is_response(ask: &Ask) -> bool {
    matches!(ask, Ask::ResponseHeader(_))
}

impl Template {
    /// Reads text with operators.
    pub(super) fn parse(text: &str) -> Result<Self, FormatError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            let (operator, length) = operator(after)?;
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Operator(operator));
            rest = after.get(length..).unwrap_or_default();
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self(pieces))
    }

    /// Writes it with `empty` where a value is missing.
    pub(super) fn write(&self, exchange: &dyn Exchange, empty: &[u8], out: &mut Vec<u8>) {
        for piece in &self.0 {
            match piece {
                Piece::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Operator(operator) => operator.write(exchange, empty, out),
            }
        }
    }

    pub(super) fn any(&self, test: &dyn Fn(&Operator) -> bool) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Operator(operator) if test(operator)))
    }
}

impl Operator {
    fn write(&self, exchange: &dyn Exchange, empty: &[u8], out: &mut Vec<u8>) {
        if let (Ask::StartTime(format), None) = (&self.ask, self.most) {
            format.write(exchange.started(), out);
            return;
        }
        if matches!(self.ask, Ask::Flags { long: false }) && exchange.flags().is_empty() {
            out.push(b'-');
            return;
        }
        match self.value(exchange) {
            Value::Missing => out.extend_from_slice(empty),
            Value::Bytes(bytes) => out.extend_from_slice(&bytes),
            Value::Number(number) => write_number(number, out),
            Value::Json(value) => {
                // Writing to a Vec cannot fail.
                let _ = serde_json::to_writer(out, &value);
            }
        }
    }
}

/// Reads an operator that follows a `%`; also says how long it is, with the closing `%`.
fn operator(after: &str) -> Result<(Operator, usize), FormatError> {
    let stray = || FormatError::Stray(format!("%{}", after.chars().take(20).collect::<String>()));
    let name_end =
        after.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')).ok_or_else(stray)?;
    let (name, mut rest) = after.split_at(name_end);
    let mut parameter = None;
    if let Some(inside) = rest.strip_prefix('(') {
        let end = closing(inside).ok_or_else(stray)?;
        parameter = inside.get(..end);
        rest = inside.get(end + 1..).unwrap_or_default();
    }
    let mut most = None;
    if let Some(length) = rest.strip_prefix(':') {
        let (digits, after) = length.split_once('%').ok_or_else(stray)?;
        most = Some(digits.parse().map_err(|_| FormatError::Parameter {
            operator: name.to_owned(),
            reason: format!("`{digits}` is no length"),
        })?);
        rest = after;
    } else {
        rest = rest.strip_prefix('%').ok_or_else(stray)?;
    }
    if name.is_empty() {
        return Err(stray());
    }
    let (ask, otherwise) = ask(name, parameter)
        .map_err(|reason| FormatError::Parameter { operator: name.to_owned(), reason })?
        .ok_or_else(|| FormatError::Unknown(name.to_owned()))?;
    Ok((Operator { ask, otherwise, most }, after.len() - rest.len()))
}

/// Where a parameter ends: at the first `)` that a `%` or a length follows.
fn closing(inside: &str) -> Option<usize> {
    inside.match_indices(')').map(|(at, _)| at).find(|at| {
        let rest = inside.get(at + 1..).unwrap_or_default();
        rest.starts_with('%') || rest.strip_prefix(':').is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()))
    })
}

type Asked = Result<Option<(Ask, Option<Ask>)>, String>;

fn ask(name: &str, parameter: Option<&str>) -> Asked {
    if let Some(asked) = with_parameter(name, parameter)? {
        return Ok(Some(asked));
    }
    if let Some(address) = name.strip_suffix("_WITHOUT_PORT") {
        return Ok(field(address).map(|field| (Ask::AddressOnly(field), None)));
    }
    if let Some(stem) = name.strip_suffix("_PORT") {
        return Ok(field(&format!("{stem}_ADDRESS")).map(|field| (Ask::PortOnly(field), None)));
    }
    Ok(field(name).map(|field| (Ask::Field(field), None)))
}

fn with_parameter(name: &str, parameter: Option<&str>) -> Asked {
    let given = parameter.unwrap_or_default();
    let ask = match name {
        "REQ" => return header_pair(given, request_ask).map(Some),
        "RESP" => return header_pair(given, response_ask).map(Some),
        "TRAILER" => {
            return header_pair(given, |name| Ok(Ask::Trailer(name.parse().map_err(|_| no_header(name))?))).map(Some);
        }
        "START_TIME" | "START_TIME_LOCAL" => Ask::StartTime(TimeFormat::parse(given)?),
        "DURATION" => Ask::Between(Moment::RequestBegun, Moment::End, 1_000),
        "REQUEST_DURATION" => Ask::Between(Moment::RequestBegun, Moment::RequestComplete, 1_000),
        "REQUEST_TX_DURATION" => Ask::Between(Moment::RequestBegun, Moment::SendComplete, 1_000),
        "RESPONSE_DURATION" => Ask::Between(Moment::RequestBegun, Moment::AnswerBegun, 1_000),
        "RESPONSE_TX_DURATION" => Ask::Between(Moment::AnswerBegun, Moment::ReplyComplete, 1_000),
        "UPSTREAM_CONNECTION_POOL_READY_DURATION" => Ask::Between(Moment::RequestBegun, Moment::Connected, 1_000),
        "COMMON_DURATION" => common_duration(given)?,
        "RESPONSE_FLAGS" => Ask::Flags { long: false },
        "RESPONSE_FLAGS_LONG" => Ask::Flags { long: true },
        "GRPC_STATUS" => Ask::GrpcStatus(match given {
            "" | "CAMEL_STRING" => GrpcForm::Camel,
            "SNAKE_STRING" => GrpcForm::Snake,
            "NUMBER" => GrpcForm::Number,
            other => return Err(format!("`{other}` is none of CAMEL_STRING, SNAKE_STRING, NUMBER")),
        }),
        "GRPC_STATUS_NUMBER" => Ask::GrpcStatus(GrpcForm::Number),
        "DYNAMIC_METADATA" => metadata(MetadataKind::Dynamic, given)?,
        "CLUSTER_METADATA" => metadata(MetadataKind::Cluster, given)?,
        "UPSTREAM_METADATA" => metadata(MetadataKind::Endpoint, given)?,
        "METADATA" => typed_metadata(given)?,
        "FILTER_STATE" | "UPSTREAM_FILTER_STATE" => Ask::Fixed(None),
        "HOSTNAME" => Ask::Fixed(hostname()),
        "ENVIRONMENT" if given.is_empty() => return Err("needs the name of a variable in parentheses".to_owned()),
        "ENVIRONMENT" => Ask::Fixed(std::env::var(given).ok()),
        "ACCESS_LOG_TYPE" => Ask::Fixed(Some("DownstreamEnd".to_owned())),
        "PATH" => path(given)?,
        "QUERY_PARAM" if given.is_empty() => return Err("needs the name of a parameter in parentheses".to_owned()),
        "QUERY_PARAM" => Ask::QueryParameter(given.to_owned()),
        _ => return Ok(None),
    };
    Ok(Some((ask, None)))
}

fn no_header(name: &str) -> String {
    format!("`{name}` is no header name")
}

fn header_pair(given: &str, one: impl Fn(&str) -> Result<Ask, String>) -> Result<(Ask, Option<Ask>), String> {
    if given.is_empty() {
        return Err("needs a header name in parentheses".to_owned());
    }
    match given.split_once('?') {
        Some((first, second)) => Ok((one(first)?, Some(one(second)?))),
        None => Ok((one(given)?, None)),
    }
}

fn request_ask(name: &str) -> Result<Ask, String> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":method" => Ask::Field(Field::Method),
        ":path" => Ask::Field(Field::Path),
        ":authority" | "host" => Ask::Field(Field::Authority),
        ":scheme" => Ask::Field(Field::Scheme),
        "x-envoy-original-path" => Ask::Field(Field::OriginalPath),
        other => Ask::RequestHeader(other.parse::<HeaderName>().map_err(|_| no_header(name))?),
    })
}

fn response_ask(name: &str) -> Result<Ask, String> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":status" => Ask::Field(Field::ResponseCode),
        other => Ask::ResponseHeader(other.parse::<HeaderName>().map_err(|_| no_header(name))?),
    })
}

fn common_duration(given: &str) -> Result<Ask, String> {
    let mut words = given.split(':');
    let mut next = || words.next().ok_or_else(|| "needs START:END:PRECISION".to_owned());
    let (from, to, precision) = (next()?, next()?, next()?);
    let unit = match precision {
        "ms" => 1_000,
        "us" => 1,
        // Kept in microseconds inside; nanoseconds would pretend a precision that is not there.
        other => return Err(format!("precision `{other}` is neither ms nor us")),
    };
    Ok(Ask::Between(moment(from)?, moment(to)?, unit))
}

fn moment(name: &str) -> Result<Moment, String> {
    Ok(match name {
        "DS_RX_BEG" => Moment::RequestBegun,
        "DS_RX_END" => Moment::RequestComplete,
        "US_CX_BEG" => Moment::ConnectBegun,
        "US_CX_END" => Moment::Connected,
        "US_HS_END" => Moment::HandshakeDone,
        "US_TX_BEG" => Moment::SendBegun,
        "US_TX_END" => Moment::SendComplete,
        "US_RX_BEG" => Moment::AnswerBegun,
        "US_RX_BODY_BEG" => Moment::AnswerBodyBegun,
        "US_RX_END" => Moment::AnswerComplete,
        "DS_TX_BEG" => Moment::ReplyBegun,
        "DS_TX_END" => Moment::ReplyComplete,
        other => return Err(format!("`{other}` is no point in an exchange")),
    })
}

fn metadata(kind: MetadataKind, given: &str) -> Result<Ask, String> {
    let mut words = given.split(':').map(str::to_owned);
    let namespace = words.next().filter(|namespace| !namespace.is_empty());
    let namespace = namespace.ok_or_else(|| "needs NAMESPACE:KEY in parentheses".to_owned())?;
    Ok(Ask::Metadata(kind, namespace, words.collect()))
}

fn typed_metadata(given: &str) -> Result<Ask, String> {
    let (kind, rest) = given.split_once(':').ok_or_else(|| "needs TYPE:NAMESPACE:KEY".to_owned())?;
    let kind = match kind {
        "DYNAMIC" => MetadataKind::Dynamic,
        "CLUSTER" => MetadataKind::Cluster,
        "UPSTREAM_HOST" => MetadataKind::Endpoint,
        "ROUTE" => MetadataKind::Route,
        "LISTENER" => MetadataKind::Listener,
        "VIRTUAL_HOST" => MetadataKind::VirtualHost,
        other => return Err(format!("`{other}` is no type of metadata")),
    };
    metadata(kind, rest)
}

fn path(given: &str) -> Result<Ask, String> {
    let mut words = given.split(':');
    let with_query = match words.next().unwrap_or_default() {
        "" | "WQ" => true,
        "NQ" => false,
        other => return Err(format!("`{other}` is neither WQ nor NQ")),
    };
    let field = match words.next().unwrap_or_default() {
        "" | "PATH" | "ORIG_OR_PATH" => Field::Path,
        "ORIG" => Field::OriginalPath,
        other => return Err(format!("`{other}` is none of ORIG, PATH, ORIG_OR_PATH")),
    };
    Ok(if with_query { Ask::Field(field) } else { Ask::PathWithoutQuery(field) })
}

fn hostname() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned())
}

/// The operators that take no parameter.
fn field(name: &str) -> Option<Field> {
    Some(match name {
        "PROTOCOL" => Field::Protocol,
        "UPSTREAM_PROTOCOL" => Field::UpstreamProtocol,
        "RESPONSE_CODE" => Field::ResponseCode,
        "RESPONSE_CODE_DETAILS" => Field::ResponseCodeDetails,
        "CONNECTION_TERMINATION_DETAILS" => Field::ConnectionTerminationDetails,
        "BYTES_RECEIVED" => Field::BytesReceived,
        "BYTES_SENT" => Field::BytesSent,
        "UPSTREAM_HOST" => Field::UpstreamHost,
        "UPSTREAM_HOST_NAME" => Field::UpstreamHostName,
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Field::UpstreamCluster,
        "UPSTREAM_LOCAL_ADDRESS" => Field::UpstreamLocalAddress,
        "UPSTREAM_REMOTE_ADDRESS" => Field::UpstreamRemoteAddress,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Field::UpstreamTransportFailureReason,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Field::UpstreamRequestAttemptCount,
        "UPSTREAM_CONNECTION_ID" => Field::UpstreamConnectionId,
        "UPSTREAM_PEER_URI_SAN" => Field::UpstreamPeerUriSan,
        "UPSTREAM_PEER_SUBJECT" => Field::UpstreamPeerSubject,
        "UPSTREAM_TLS_VERSION" => Field::UpstreamTlsVersion,
        "UPSTREAM_TLS_CIPHER" => Field::UpstreamTlsCipher,
        "UPSTREAM_WIRE_BYTES_RECEIVED" => Field::UpstreamWireBytesReceived,
        "UPSTREAM_WIRE_BYTES_SENT" => Field::UpstreamWireBytesSent,
        "UPSTREAM_HEADER_BYTES_RECEIVED" => Field::UpstreamHeaderBytesReceived,
        "UPSTREAM_HEADER_BYTES_SENT" => Field::UpstreamHeaderBytesSent,
        "ROUTE_NAME" => Field::RouteName,
        "VIRTUAL_HOST_NAME" => Field::VirtualHostName,
        "VIRTUAL_CLUSTER_NAME" => Field::VirtualClusterName,
        "FILTER_CHAIN_NAME" => Field::FilterChainName,
        "CONNECTION_ID" => Field::ConnectionId,
        "REQUESTED_SERVER_NAME" => Field::RequestedServerName,
        "STREAM_ID" => Field::StreamId,
        "TRACE_ID" => Field::TraceId,
        "LOCAL_REPLY_BODY" => Field::LocalReplyBody,
        "TULLE_ID" => Field::TulleId,
        "TULLE_REASON" => Field::TulleReason,
        "POLICY" => Field::Policy,
        name => return downstream_field(name.strip_prefix("DOWNSTREAM_")?),
    })
}

fn downstream_field(name: &str) -> Option<Field> {
    Some(match name {
        "LOCAL_ADDRESS" => Field::DownstreamLocalAddress,
        "REMOTE_ADDRESS" => Field::DownstreamRemoteAddress,
        "DIRECT_REMOTE_ADDRESS" => Field::DownstreamDirectRemoteAddress,
        "PEER_URI_SAN" => Field::DownstreamPeerUriSan,
        "PEER_DNS_SAN" => Field::DownstreamPeerDnsSan,
        "PEER_SUBJECT" => Field::DownstreamPeerSubject,
        "PEER_ISSUER" => Field::DownstreamPeerIssuer,
        "PEER_SERIAL" => Field::DownstreamPeerSerial,
        "PEER_FINGERPRINT_256" => Field::DownstreamPeerFingerprint256,
        "PEER_CERT_V_START" => Field::DownstreamPeerCertVStart,
        "PEER_CERT_V_END" => Field::DownstreamPeerCertVEnd,
        "LOCAL_URI_SAN" => Field::DownstreamLocalUriSan,
        "LOCAL_SUBJECT" => Field::DownstreamLocalSubject,
        "TLS_VERSION" => Field::DownstreamTlsVersion,
        "TLS_CIPHER" => Field::DownstreamTlsCipher,
        "TLS_SESSION_ID" => Field::DownstreamTlsSessionId,
        "TRANSPORT_FAILURE_REASON" => Field::DownstreamTransportFailureReason,
        "WIRE_BYTES_RECEIVED" => Field::DownstreamWireBytesReceived,
        "WIRE_BYTES_SENT" => Field::DownstreamWireBytesSent,
        "HEADER_BYTES_RECEIVED" => Field::DownstreamHeaderBytesReceived,
        "HEADER_BYTES_SENT" => Field::DownstreamHeaderBytesSent,
        _ => return None,
    })
}
