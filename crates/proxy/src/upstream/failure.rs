//! Why an attempt came to nothing, as a value: who is guilty, what Envoy calls it, what is answered.

use std::sync::Arc;

use engine::framing::Fault;
use engine::reply::Flags;
use http::StatusCode;

/// gRPC's status for a deadline that has passed.
const DEADLINE_EXCEEDED: u16 = 4;

/// Who is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guilty {
    /// The client broke the protocol or went away.
    Client,
    /// The endpoint, or the network before it.
    Upstream,
    /// The configuration: no route, no cluster, no healthy endpoint.
    Mesh,
    /// This proxy: a limit, an injected fault, missing secrets.
    Local,
}

/// What happened to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The connection could not be made.
    ConnectFailure,
    /// The connection was not made in time.
    ConnectTimeout,
    /// A circuit limit left no room.
    Overflow,
    /// The connection ended before the answer began.
    Termination,
    /// The endpoint reset the stream.
    RemoteReset,
    /// The endpoint refused the stream before working on it.
    RefusedStream,
    /// The endpoint broke HTTP.
    Protocol,
    /// The attempt took longer than its limit.
    PerTryTimeout,
    /// Nothing came from the attempt for longer than its limit.
    PerTryIdle,
    /// The exchange took longer than its limit.
    Timeout,
    /// The exchange lived longer than it may (`max_stream_duration`, `grpc-timeout`).
    Duration,
    /// The attempt lived longer than its cluster lets it.
    TryDuration,
    /// Nothing moved for longer than the exchange may stand still.
    Idle,
    /// The client did not send the whole request in time (`request_timeout`).
    Arrival,
    /// No endpoint can take the request.
    NoHealthyUpstream,
    /// The client broke off.
    Downstream,
    /// The client's body broke HTTP.
    Malformed,
}

/// A failed attempt.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What happened.
    pub kind: Kind,
    /// What the transport said (`%UPSTREAM_TRANSPORT_FAILURE_REASON%`).
    pub transport: Option<Arc<str>>,
}

impl From<Kind> for Failure {
    fn from(kind: Kind) -> Self {
        Self { kind, transport: None }
    }
}

impl Failure {
    /// A connection that could not be made.
    pub fn connect(reason: &str) -> Self {
        Self { kind: Kind::ConnectFailure, transport: Some(reason.into()) }
    }

    /// Who is to blame.
    pub fn guilty(&self) -> Guilty {
        match self.kind {
            Kind::Downstream | Kind::Malformed | Kind::Arrival => Guilty::Client,
            Kind::Overflow => Guilty::Local,
            Kind::NoHealthyUpstream => Guilty::Mesh,
            _ => Guilty::Upstream,
        }
    }

    /// Envoy's response flag.
    pub fn flags(&self) -> Flags {
        match self.kind {
            Kind::ConnectFailure | Kind::ConnectTimeout => Flags::UPSTREAM_CONNECTION_FAILURE,
            Kind::Overflow => Flags::UPSTREAM_OVERFLOW,
            Kind::Termination => Flags::UPSTREAM_CONNECTION_TERMINATION,
            Kind::RemoteReset | Kind::RefusedStream => Flags::UPSTREAM_REMOTE_RESET,
            Kind::Protocol => Flags::UPSTREAM_PROTOCOL_ERROR,
            Kind::PerTryTimeout | Kind::PerTryIdle | Kind::Timeout => Flags::UPSTREAM_REQUEST_TIMEOUT,
            Kind::Idle => Flags::STREAM_IDLE_TIMEOUT,
            Kind::TryDuration => Flags::UPSTREAM_MAX_STREAM_DURATION,
            Kind::Duration | Kind::Arrival => Flags::NONE,
            Kind::NoHealthyUpstream => Flags::NO_HEALTHY_UPSTREAM,
            Kind::Downstream => Flags::DOWNSTREAM_CONNECTION_TERMINATION,
            Kind::Malformed => Flags::DOWNSTREAM_PROTOCOL_ERROR,
        }
    }

    /// The status of the answer that the proxy makes of it. `arrived`: the whole request has come; where the client is still
    /// sending, what takes too long is its request.
    pub fn status(&self, arrived: bool) -> StatusCode {
        match self.kind {
            Kind::Arrival => StatusCode::REQUEST_TIMEOUT,
            Kind::Idle | Kind::Duration | Kind::TryDuration if !arrived => StatusCode::REQUEST_TIMEOUT,
            Kind::PerTryTimeout | Kind::PerTryIdle | Kind::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Kind::Idle | Kind::Duration | Kind::TryDuration => StatusCode::GATEWAY_TIMEOUT,
            Kind::Protocol => StatusCode::BAD_GATEWAY,
            Kind::Downstream => StatusCode::BAD_REQUEST,
            Kind::Malformed => Fault::Grammar.status(),
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The gRPC status, where it does not follow from the HTTP status.
    pub fn grpc_status(&self) -> Option<u16> {
        (self.kind == Kind::Duration).then_some(DEADLINE_EXCEEDED)
    }

    /// Envoy's name of the reset (`source/common/http/utility.cc`, `resetReasonToString`).
    fn reset_reason(&self) -> &'static str {
        match self.kind {
            Kind::ConnectFailure => "remote connection failure",
            Kind::ConnectTimeout => "connection timeout",
            Kind::Overflow => "overflow",
            Kind::Termination => "connection termination",
            Kind::RefusedStream => "remote refused stream reset",
            Kind::Protocol => "protocol error",
            _ => "remote reset",
        }
    }

    /// The body of the answer.
    pub fn body(&self, retried: bool) -> String {
        match self.kind {
            Kind::Downstream => String::new(),
            Kind::Malformed => "Bad Request".to_owned(),
            Kind::PerTryTimeout | Kind::PerTryIdle | Kind::Timeout => "upstream request timeout".to_owned(),
            Kind::Duration => "downstream duration timeout".to_owned(),
            Kind::TryDuration => "upstream max stream duration reached".to_owned(),
            Kind::Idle => "stream timeout".to_owned(),
            Kind::Arrival => "request timeout".to_owned(),
            Kind::NoHealthyUpstream => "no healthy upstream".to_owned(),
            _ => {
                let prefix = if retried { "retried and the latest reset reason: " } else { "reset reason: " };
                let reason = self.reset_reason();
                // What the transport said stays in the log: it names addresses.
                format!("upstream connect error or disconnect/reset before headers. {prefix}{reason}")
            }
        }
    }

    /// `%RESPONSE_CODE_DETAILS%`
    pub fn details(&self) -> String {
        match self.kind {
            Kind::PerTryTimeout => "upstream_per_try_timeout".to_owned(),
            Kind::PerTryIdle => "upstream_per_try_idle_timeout".to_owned(),
            Kind::Timeout => "response_timeout".to_owned(),
            Kind::Duration => "max_duration_timeout".to_owned(),
            Kind::TryDuration => "upstream_max_stream_duration_reached".to_owned(),
            Kind::Idle => "stream_idle_timeout".to_owned(),
            Kind::Arrival => "request_overall_timeout".to_owned(),
            Kind::NoHealthyUpstream => "no_healthy_upstream".to_owned(),
            Kind::Downstream => "downstream_remote_disconnect".to_owned(),
            Kind::Malformed => Fault::Grammar.details().to_owned(),
            _ => {
                let reason = self.reset_reason().replace(' ', "_");
                let transport = self.transport.as_ref().filter(|_| self.kind == Kind::ConnectFailure);
                match transport {
                    Some(transport) => {
                        let transport = transport.replace(char::is_whitespace, "_");
                        format!("upstream_reset_before_response_started{{{reason}|{transport}}}")
                    }
                    None => format!("upstream_reset_before_response_started{{{reason}}}"),
                }
            }
        }
    }
}
