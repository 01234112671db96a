//! One operator of a format: `%NAME(PARAMETER):LENGTH%`.

use std::borrow::Cow;

use http::HeaderName;

use super::clock::TimeFormat;
use super::{Exchange, Field, Value};

/// A point in an exchange, as `%COMMON_DURATION(START:END:PRECISION)%` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// `DS_RX_BEG`: the request's first byte.
    RequestBegun,
    /// `DS_RX_END`: the request's last byte.
    RequestComplete,
    /// `US_CX_BEG`: connecting upstream began.
    ConnectBegun,
    /// `US_CX_END`: the upstream connection stood.
    Connected,
    /// `US_HS_END`: the upstream TLS handshake was done.
    HandshakeDone,
    /// `US_TX_BEG`: first byte sent upstream.
    SendBegun,
    /// `US_TX_END`: last byte sent upstream.
    SendComplete,
    /// `US_RX_BEG`: first byte of the answer from upstream.
    AnswerBegun,
    /// `US_RX_BODY_BEG`: first byte of the answer's body.
    AnswerBodyBegun,
    /// `US_RX_END`: last byte of the answer from upstream.
    AnswerComplete,
    /// `DS_TX_BEG`: first byte of the answer to the client.
    ReplyBegun,
    /// `DS_TX_END`: last byte of the answer to the client.
    ReplyComplete,
    /// The end of the exchange (`%DURATION%`).
    End,
}

/// Whose metadata an operator names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataKind {
    /// `%DYNAMIC_METADATA(..)%`: what filters noted.
    Dynamic,
    /// `%CLUSTER_METADATA(..)%`.
    Cluster,
    /// `%UPSTREAM_METADATA(..)%`: of the endpoint.
    Endpoint,
    /// `%METADATA(ROUTE:..)%`.
    Route,
    /// `%METADATA(LISTENER:..)%`.
    Listener,
    /// `%METADATA(VIRTUAL_HOST:..)%`.
    VirtualHost,
}

/// What the operator asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ask {
    Field(Field),
    /// An address without its port, and only its port.
    AddressOnly(Field),
    PortOnly(Field),
    RequestHeader(HeaderName),
    ResponseHeader(HeaderName),
    Trailer(HeaderName),
    StartTime(TimeFormat),
    /// From one moment to another, in units of so many microseconds.
    Between(Moment, Moment, u64),
    Flags {
        long: bool,
    },
    GrpcStatus(GrpcForm),
    Metadata(MetadataKind, String, Vec<String>),
    /// Known when the format is read (`%HOSTNAME%`, `%ENVIRONMENT(X)%`).
    Fixed(Option<String>),
    /// `%PATH(NQ)%`: the path without its query.
    PathWithoutQuery(Field),
    QueryParameter(String),
}

/// How a gRPC status is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GrpcForm {
    Camel,
    Snake,
    Number,
}

/// An operator: the first of its asks that has an answer, cut to a length.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Operator {
    pub(super) ask: Ask,
    /// What follows `?` in `%REQ(A?B)%`.
    pub(super) otherwise: Option<Ask>,
    /// At most so many bytes.
    pub(super) most: Option<usize>,
}

impl Operator {
    /// Its value for one exchange.
    pub(super) fn value<'a>(&self, exchange: &'a dyn Exchange) -> Value<'a> {
        let mut value = self.ask.value(exchange);
        if let (Value::Missing, Some(otherwise)) = (&value, &self.otherwise) {
            value = otherwise.value(exchange);
        }
        match (value, self.most) {
            (Value::Bytes(bytes), Some(most)) if bytes.len() > most => Value::Bytes(cut(bytes, most)),
            (value, _) => value,
        }
    }
}

fn cut(bytes: Cow<'_, [u8]>, most: usize) -> Cow<'_, [u8]> {
    match bytes {
        Cow::Borrowed(bytes) => Cow::Borrowed(bytes.get(..most).unwrap_or(bytes)),
        Cow::Owned(mut bytes) => {
            bytes.truncate(most);
            Cow::Owned(bytes)
        }
    }
}

impl Ask {
    fn value<'a>(&self, exchange: &'a dyn Exchange) -> Value<'a> {
        match self {
            Self::Field(field) => exchange.field(*field),
            Self::AddressOnly(field) => map_text(exchange.field(*field), |text| Some(split_port(text).0)),
            Self::PortOnly(field) => port(&exchange.field(*field)),
            Self::RequestHeader(name) => header(exchange.request_header(name)),
            Self::ResponseHeader(name) => header(exchange.response_header(name)),
            Self::Trailer(name) => header(exchange.response_trailer(name)),
            Self::StartTime(format) => {
                let mut out = Vec::with_capacity(24);
                format.write(exchange.started(), &mut out);
                Value::Bytes(Cow::Owned(out))
            }
            Self::Between(from, to, unit) => {
                let span = exchange.moment(*to).zip(exchange.moment(*from)).and_then(|(to, from)| to.checked_sub(from));
                Value::number(span.map(|span| u64::try_from(span.as_micros()).unwrap_or(u64::MAX) / unit.max(&1)))
            }
            Self::Flags { long: false } => Value::made(Some(exchange.flags().to_string())),
            Self::Flags { long: true } => Value::made(Some(exchange.flags().long())),
            Self::GrpcStatus(form) => grpc_status(exchange.field(Field::GrpcStatus), *form),
            Self::Metadata(kind, namespace, keys) => exchange.metadata(*kind, namespace, keys),
            Self::Fixed(text) => Value::made(text.clone()),
            Self::PathWithoutQuery(field) => map_text(exchange.field(*field), |path| path.split('?').next()),
            Self::QueryParameter(name) => map_text(exchange.field(Field::Path), |path| {
                let (_, query) = path.split_once('?')?;
                query.split('&').find_map(|pair| pair.strip_prefix(name.as_str())?.strip_prefix('='))
            }),
        }
    }
}

fn header(value: Option<&[u8]>) -> Value<'_> {
    match value {
        Some(value) if !value.is_empty() => Value::Bytes(Cow::Borrowed(value)),
        _ => Value::Missing,
    }
}

fn map_text<'a>(value: Value<'a>, part: impl Fn(&str) -> Option<&str>) -> Value<'a> {
    let Value::Bytes(bytes) = value else { return Value::Missing };
    let text = std::str::from_utf8(&bytes).ok().and_then(part).map(str::to_owned);
    Value::made(text)
}

/// Host and port of an address as text: `[::1]:80` gives `::1` and `80`; a Unix path has no port.
fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((host, port)) if !port.contains('/') => (host.trim_start_matches('[').trim_end_matches(']'), Some(port)),
        _ => (text, None),
    }
}

fn port(value: &Value<'_>) -> Value<'static> {
    let Value::Bytes(bytes) = value else { return Value::Missing };
    let port = std::str::from_utf8(bytes).ok().and_then(|text| split_port(text).1).and_then(|port| port.parse().ok());
    Value::number(port)
}

/// Names of the gRPC statuses, by number.
const GRPC: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

fn grpc_status(value: Value<'_>, form: GrpcForm) -> Value<'static> {
    let Value::Number(number) = value else { return Value::Missing };
    let names = usize::try_from(number).ok().and_then(|index| GRPC.get(index));
    match (form, names) {
        (GrpcForm::Number, _) => Value::Number(number),
        (GrpcForm::Camel, Some((camel, _))) => Value::text(Some(camel)),
        (GrpcForm::Snake, Some((_, snake))) => Value::text(Some(snake)),
        (_, None) => Value::made(Some(number.to_string())),
    }
}

/// Writes a whole number in decimal.
pub(super) fn write_number(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    for (index, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        at = index;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}
