//! Fault injection.

use std::time::Duration;

use model::route::{AbortWith, Fault, FaultAbort, FaultDelay};

use crate::codes;
use crate::field::{Field, Object};

/// gRPC's status names, by number.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Reads `fault`.
pub(super) fn read(field: &Field<'_>) -> Fault {
    let object = field.object();
    let fault = Fault {
        delay: object.get("delay").map(|field| delay(&field)),
        abort: object.get("abort").map(|field| abort(&field)),
    };
    if fault == Fault::default() {
        field
            .error(codes::FAULT, "the fault neither delays nor aborts")
            .help("give delay: {fixedDelay: 2s, percentage: {value: 10}} or abort: {httpStatus: 503, percentage: {value: 10}}");
    }
    fault
}

fn delay(field: &Field<'_>) -> FaultDelay {
    let object = field.object();
    object.refuse("exponentialDelay", "only fixed delays are");
    let fixed = match object.get("fixedDelay") {
        Some(fixed) => fixed.positive_duration(),
        None => {
            object.missing("fixedDelay").help("say how long: fixedDelay: 2s");
            Duration::ZERO
        }
    };
    FaultDelay { fixed, millionths: share(&object, "delayed") }
}

fn abort(field: &Field<'_>) -> FaultAbort {
    let object = field.object();
    object.at_most_one(&["httpStatus", "grpcStatus", "http2Error"]);
    object.refuse("http2Error", "abort with httpStatus or grpcStatus");
    let http = object.get("httpStatus").map(|status| {
        let status = status.integer(200, 599);
        AbortWith::Http(u16::try_from(status).unwrap_or(500))
    });
    let grpc = object.get("grpcStatus").map(|status| grpc_status(&status));
    let with = http.or(grpc).unwrap_or_else(|| {
        if object.get("http2Error").is_none() {
            field
                .error(codes::FAULT, "the abort has no status")
                .help("give httpStatus: 503 or grpcStatus: UNAVAILABLE");
        }
        AbortWith::Http(500)
    });
    FaultAbort { with, millionths: share(&object, "aborted") }
}

fn grpc_status(field: &Field<'_>) -> AbortWith {
    let text = field.text();
    let by_name = GRPC.iter().position(|name| *name == text);
    let by_number = text.parse::<usize>().ok().filter(|number| *number < GRPC.len());
    let number = by_name.or(by_number).unwrap_or_else(|| {
        field.error(codes::ENUM, format!("`{text}` is no gRPC status")).help("write a name such as UNAVAILABLE");
        2
    });
    AbortWith::Grpc(u32::try_from(number).unwrap_or(2))
}

fn share(object: &Object<'_>, done: &str) -> u32 {
    if let Some(field) = object.get("percentage") {
        return field.percentage();
    }
    if let Some(field) = object.get("percent") {
        field.warn(codes::DEPRECATED, "`percent` is deprecated").help("write percentage: {value: ...}");
        return u32::try_from(field.integer(0, 100)).unwrap_or_default() * 10_000;
    }
    object
        .field
        .warn(codes::FAULT, format!("without `percentage` no request is {done}"))
        .help("add percentage: {value: 100}");
    0
}
