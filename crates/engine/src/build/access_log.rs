//! Access logs.

use std::path::Path;
use std::sync::Arc;

use proto::envoy::config::accesslog::v3 as log;
use proto::envoy::config::core::v3 as core;
use proto::envoy::extensions::access_loggers::{file::v3 as file, stream::v3 as stream};

use super::value::{Substituted, fraction, header, json_template, metadata, substituted, template};
use super::{Context, flag, type_name};
use crate::access_log::{AccessLog, Comparison, ComparisonOp, LogFilter, LogFormat, LogSink};
use crate::dice::Fraction;

/// UNAUTHENTICATED.
const HIGHEST_GRPC_STATUS: u32 = 16;

pub(super) fn access_log(cx: &mut Context<'_>, message: &log::AccessLog) -> Option<Arc<AccessLog>> {
    let filter = match &message.filter {
        Some(filter) => Some(cx.field("filter", |cx| log_filter(cx, filter))?),
        None => None,
    };
    let Some(log::access_log::ConfigType::TypedConfig(any)) = &message.config_type else {
        return cx.field("typed_config", |cx| cx.refuse("is required"));
    };
    let (sink, format) = cx.field("typed_config", |cx| match type_name(any) {
        "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
            let message: file::FileAccessLog = cx.unpack(any)?;
            let path = cx.needed("path", &message.path)?;
            Some((file_sink(&path), file_format(cx, &message)?))
        }
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
            let message: stream::StdoutAccessLog = cx.unpack(any)?;
            let Some(stream::stdout_access_log::AccessLogFormat::LogFormat(format)) = message.access_log_format else {
                return Some((LogSink::Stdout, LogFormat::Default));
            };
            Some((LogSink::Stdout, cx.field("log_format", |cx| log_format(cx, &format))?))
        }
        "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
            let message: stream::StderrAccessLog = cx.unpack(any)?;
            let Some(stream::stderr_access_log::AccessLogFormat::LogFormat(format)) = message.access_log_format else {
                return Some((LogSink::Stderr, LogFormat::Default));
            };
            Some((LogSink::Stderr, cx.field("log_format", |cx| log_format(cx, &format))?))
        }
        other => cx.refuse(format!("the access log {other} is not implemented")),
    })?;
    Some(Arc::new(AccessLog { sink, format, filter }))
}

/// `/dev/stdout` and `/dev/stderr` name the streams themselves: opening them as files fails for sockets and pipes.
fn file_sink(path: &str) -> LogSink {
    match path {
        "/dev/stdout" => LogSink::Stdout,
        "/dev/stderr" => LogSink::Stderr,
        _ => LogSink::File(Path::new(path).into()),
    }
}

#[allow(deprecated, reason = "The short forms are what most bootstraps use")]
fn file_format(cx: &mut Context<'_>, message: &file::FileAccessLog) -> Option<LogFormat> {
    use file::file_access_log::AccessLogFormat as Kind;
    match &message.access_log_format {
        None => Some(LogFormat::Default),
        Some(Kind::Format(text)) if text.is_empty() => Some(LogFormat::Default),
        Some(Kind::Format(text)) => cx.field("format", |cx| template(cx, text)).map(LogFormat::Text),
        Some(Kind::JsonFormat(tree)) => {
            cx.field("json_format", |cx| json_template(cx, tree, false)).map(LogFormat::Json)
        }
        Some(Kind::TypedJsonFormat(tree)) => {
            cx.field("typed_json_format", |cx| json_template(cx, tree, false)).map(LogFormat::Json)
        }
        Some(Kind::LogFormat(format)) => cx.field("log_format", |cx| log_format(cx, format)),
    }
}

fn log_format(cx: &mut Context<'_>, message: &core::SubstitutionFormatString) -> Option<LogFormat> {
    Some(match substituted(cx, message)? {
        Substituted::Text(text) => LogFormat::Text(text),
        Substituted::Json(json) => LogFormat::Json(json),
    })
}

pub(super) fn log_filter(cx: &mut Context<'_>, message: &log::AccessLogFilter) -> Option<LogFilter> {
    use log::access_log_filter::FilterSpecifier as Kind;
    match &message.filter_specifier {
        Some(Kind::StatusCodeFilter(filter)) => cx.field("status_code_filter", |cx| {
            cx.required("comparison", filter.comparison.as_ref(), comparison).map(LogFilter::Status)
        }),
        Some(Kind::DurationFilter(filter)) => cx.field("duration_filter", |cx| {
            cx.required("comparison", filter.comparison.as_ref(), comparison).map(LogFilter::Duration)
        }),
        Some(Kind::NotHealthCheckFilter(_)) => Some(LogFilter::NotHealthCheck),
        Some(Kind::TraceableFilter(_)) => Some(LogFilter::Traceable),
        Some(Kind::RuntimeFilter(filter)) => cx.field("runtime_filter", |cx| {
            let share = cx.optional("percent_sampled", filter.percent_sampled.as_ref(), fraction);
            let share = share.unwrap_or(Fraction::NEVER);
            Some(LogFilter::Sample(cx.runtime().numerator(&filter.runtime_key, share)))
        }),
        Some(Kind::AndFilter(filter)) => {
            Some(LogFilter::And(cx.field("and_filter", |cx| cx.list("filters", &filter.filters, log_filter))))
        }
        Some(Kind::OrFilter(filter)) => {
            Some(LogFilter::Or(cx.field("or_filter", |cx| cx.list("filters", &filter.filters, log_filter))))
        }
        Some(Kind::HeaderFilter(filter)) => {
            cx.field("header_filter", |cx| cx.required("header", filter.header.as_ref(), header)).map(LogFilter::Header)
        }
        Some(Kind::ResponseFlagFilter(filter)) => cx.field("response_flag_filter", |cx| {
            Some(LogFilter::Flags(cx.list("flags", &filter.flags, |cx, letters| {
                match crate::reply::Flags::parse(letters) {
                    Some(_) => Some(cx.share(letters)),
                    None => cx.refuse(format!("{letters:?} is no response flag")),
                }
            })))
        }),
        Some(Kind::GrpcStatusFilter(filter)) => cx.field("grpc_status_filter", |cx| {
            let codes = cx.list("statuses", &filter.statuses, |cx, code| match u32::try_from(*code) {
                Ok(code) if code <= HIGHEST_GRPC_STATUS => Some(code),
                _ => cx.refuse("is no gRPC status"),
            });
            Some(LogFilter::GrpcStatus { codes, exclude: filter.exclude })
        }),
        Some(Kind::MetadataFilter(filter)) => cx.field("metadata_filter", |cx| {
            let matcher = cx.required("matcher", filter.matcher.as_ref(), metadata)?;
            Some(LogFilter::Metadata { matcher, if_missing: flag(filter.match_if_key_not_found.as_ref(), true) })
        }),
        Some(_) => cx.refuse("this access log filter is not implemented"),
        None => cx.refuse("a filter is required"),
    }
}

fn comparison(cx: &mut Context<'_>, message: &log::ComparisonFilter) -> Option<Comparison> {
    let op = match message.op {
        0 => ComparisonOp::Equal,
        1 => ComparisonOp::AtLeast,
        2 => ComparisonOp::AtMost,
        3 => ComparisonOp::NotEqual,
        _ => return cx.field("op", |cx| cx.refuse("is no known comparison")),
    };
    let value = message.value.as_ref().map_or(0, |value| cx.runtime().small(&value.runtime_key, value.default_value));
    Some(Comparison { op, value })
}
