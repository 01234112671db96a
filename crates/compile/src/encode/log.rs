//! Access logs as MeshConfig asks for them.

use std::collections::HashMap;

use model::mesh::AccessLogConfig;
use proto::envoy::config::accesslog::v3::{AccessLog, access_log};
use proto::envoy::config::core::v3::{
    DataSource, SubstitutionFormatString, data_source::Specifier, substitution_format_string::Format,
};
use proto::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log};
use proto::envoy::extensions::access_loggers::stream::v3::{StdoutAccessLog, stdout_access_log};
use proto::google::protobuf::{Struct, Value, value::Kind};

use super::wire;

/// The fields of a JSON line when no format is given (names as in Istio's).
const JSON_FIELDS: [(&str, &str); 24] = [
    ("authority", "%REQ(:AUTHORITY)%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("duration", "%DURATION%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("route_name", "%ROUTE_NAME%"),
    ("start_time", "%START_TIME%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
];

/// The access logs of a listener's filters: one or none.
pub(crate) fn access_logs(config: &AccessLogConfig) -> Vec<AccessLog> {
    let Some(file) = &config.file else { return Vec::new() };
    let format = format(config);
    let (name, typed) = if file == "/dev/stdout" {
        let log = StdoutAccessLog { access_log_format: format.map(stdout_access_log::AccessLogFormat::LogFormat) };
        ("envoy.access_loggers.stdout", wire::any(&log, &wire::STDOUT_LOG))
    } else {
        let log = FileAccessLog {
            path: file.clone(),
            access_log_format: format.map(file_access_log::AccessLogFormat::LogFormat),
        };
        ("envoy.access_loggers.file", wire::any(&log, &wire::FILE_LOG))
    };
    vec![AccessLog {
        name: name.to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(typed)),
        ..AccessLog::default()
    }]
}

fn format(config: &AccessLogConfig) -> Option<SubstitutionFormatString> {
    let format = match (config.json, &config.format) {
        (false, None) => return None,
        (false, Some(text)) => Format::TextFormatSource(DataSource {
            specifier: Some(Specifier::InlineString(text.clone())),
            ..DataSource::default()
        }),
        (true, None) => Format::JsonFormat(wire::object(JSON_FIELDS)),
        (true, Some(text)) => Format::JsonFormat(json_object(text)),
    };
    Some(SubstitutionFormatString { format: Some(format), ..SubstitutionFormatString::default() })
}

/// A JSON format as the user wrote it; the default fields where it is no JSON object.
fn json_object(text: &str) -> Struct {
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(serde_json::Value::Object(fields)) => structure(fields),
        _ => wire::object(JSON_FIELDS),
    }
}

fn structure(fields: serde_json::Map<String, serde_json::Value>) -> Struct {
    let fields: HashMap<String, Value> = fields.into_iter().map(|(name, value)| (name, json_value(value))).collect();
    Struct { fields }
}

fn json_value(value: serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(value),
        serde_json::Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        serde_json::Value::String(value) => Kind::StringValue(value),
        serde_json::Value::Array(values) => {
            let values = values.into_iter().map(json_value).collect();
            Kind::ListValue(proto::google::protobuf::ListValue { values })
        }
        serde_json::Value::Object(fields) => Kind::StructValue(structure(fields)),
    };
    Value { kind: Some(kind) }
}
