//! One access log: which records it takes, and the line it writes of each.

use engine::Dice;
use engine::access_log::{AccessLog, LogFilter, LogFormat, LogSink};
use engine::format::{JsonNode, JsonTemplate, MetadataSource, Operator, Piece, Template, Values as _};
use engine::local_reply::BodyTemplate;
use engine::reply::grpc_status;
use engine::tracing::TraceReason;
use telemetry::accesslog::{Sink, Sinks, Target, write_json_text};

use super::record::{Record, Wants};

/// Envoy's default format (its documentation, "Default format string").
pub const ENVOY_DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
    \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// A log that can be written to.
#[derive(Debug)]
pub struct Log {
    sink: Sink,
    format: Format,
    filter: Option<LogFilter>,
}

#[derive(Debug)]
enum Format {
    Text(Template),
    Json {
        template: JsonTemplate,
        /// The same as a list, with all that never changes written down once; `None`: absent values are left out, so
        /// that nothing is fixed.
        parts: Option<Vec<Part>>,
    },
}

/// A part of a JSON line.
#[derive(Debug)]
enum Part {
    Fixed(Vec<u8>),
    Value(Template),
}

impl Log {
    /// Opens a configured log.
    ///
    /// # Errors
    /// When its file cannot be opened for appending.
    pub fn open(config: &AccessLog, sinks: &Sinks) -> std::io::Result<Self> {
        let target = match &config.sink {
            LogSink::File(path) => Target::File(path.to_path_buf()),
            LogSink::Stdout => Target::Stdout,
            LogSink::Stderr => Target::Stderr,
        };
        let sink = sinks.open(&target)?;
        Ok(Self { sink, format: Format::of(&config.format), filter: config.filter.clone() })
    }

    /// Writes the record's line, unless the filter says no.
    pub fn write(&self, record: &Record, worker: usize, dice: &mut Dice, scratch: &mut String) {
        if self.filter.as_ref().is_some_and(|filter| !takes(filter, record, dice)) {
            return;
        }
        self.sink.line(worker, |out| self.format.write(record, scratch, out));
    }

    /// What the format reads beyond what every record has.
    pub fn wants(&self) -> Wants {
        let mut wants = Wants::default();
        self.format.each(&mut |operator| match operator {
            Operator::Resp { name, otherwise } => {
                let copied = |name: &http::HeaderName| name != "x-envoy-upstream-service-time";
                wants.response_headers |= copied(name) || otherwise.as_ref().is_some_and(copied);
            }
            Operator::Trailer { .. } => wants.response_trailers = true,
            _ => {}
        });
        wants
    }
}

/// The body of an answer of the proxy's own.
pub fn body(template: &BodyTemplate, record: &Record) -> Vec<u8> {
    let (mut text, mut out) = (String::new(), Vec::new());
    match template {
        BodyTemplate::Text(template, absent) => {
            template.render(record, absent, &mut text);
            return text.into_bytes();
        }
        BodyTemplate::Json(template) => json(&template.root, template.omit_empty, record, &mut text, &mut out),
    }
    out.push(b'\n');
    out
}

impl Format {
    fn of(format: &LogFormat) -> Self {
        match format {
            LogFormat::Default => Self::Text(Template::parse(ENVOY_DEFAULT).unwrap_or_else(|_| Template::literal(""))),
            LogFormat::Text(template) => Self::Text(template.clone()),
            LogFormat::Json(template) => {
                let parts = (!template.omit_empty).then(|| parts(&template.root));
                Self::Json { template: template.clone(), parts }
            }
        }
    }

    fn write(&self, record: &Record, scratch: &mut String, out: &mut Vec<u8>) {
        match self {
            Self::Text(template) => {
                scratch.clear();
                template.render(record, "-", scratch);
                out.extend_from_slice(scratch.as_bytes());
            }
            Self::Json { parts: Some(parts), .. } => {
                for part in parts {
                    match part {
                        Part::Fixed(bytes) => out.extend_from_slice(bytes),
                        Part::Value(template) => value(template, false, record, scratch, out),
                    }
                }
            }
            Self::Json { template, parts: None } => {
                json(&template.root, template.omit_empty, record, scratch, out);
                out.push(b'\n');
            }
        }
    }

    fn each(&self, visit: &mut dyn FnMut(&Operator)) {
        match self {
            Self::Text(template) => each_of(template, visit),
            Self::Json { template, .. } => each_in(&template.root, visit),
        }
    }
}

fn each_of(template: &Template, visit: &mut dyn FnMut(&Operator)) {
    for piece in template.pieces() {
        if let Piece::Operator(operator, _) = piece {
            visit(operator);
        }
    }
}

fn each_in(node: &JsonNode, visit: &mut dyn FnMut(&Operator)) {
    match node {
        JsonNode::Text(template) => each_of(template, visit),
        JsonNode::List(items) => items.iter().for_each(|item| each_in(item, visit)),
        JsonNode::Object(members) => members.iter().for_each(|(_, member)| each_in(member, visit)),
        JsonNode::Number(_) | JsonNode::Flag(_) | JsonNode::Null => {}
    }
}

/// Writes a JSON value with Envoy's typing: an operator alone keeps its type and is null when absent, among other text
/// it becomes text.
fn json(node: &JsonNode, omit_empty: bool, record: &Record, scratch: &mut String, out: &mut Vec<u8>) {
    match node {
        JsonNode::Text(template) => value(template, omit_empty, record, scratch, out),
        JsonNode::Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
        JsonNode::Flag(flag) => out.extend_from_slice(if *flag { b"true" } else { b"false" }),
        JsonNode::Null => out.extend_from_slice(b"null"),
        JsonNode::List(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                json(item, omit_empty, record, scratch, out);
            }
            out.push(b']');
        }
        JsonNode::Object(members) => object(members, omit_empty, record, scratch, out),
    }
}

fn value(template: &Template, omit_empty: bool, record: &Record, scratch: &mut String, out: &mut Vec<u8>) {
    if let Some((operator, limit)) = template.as_operator() {
        return typed(operator, limit, template, record, scratch, out);
    }
    scratch.clear();
    template.render(record, if omit_empty { "" } else { "-" }, scratch);
    write_json_text(scratch, out);
}

/// A document as a list of parts, its line feed included.
fn parts(root: &JsonNode) -> Vec<Part> {
    let mut parts = Parts::default();
    parts.gather(root);
    parts.open.push(b'\n');
    parts.close();
    parts.done
}

/// A list of parts under construction.
#[derive(Default)]
struct Parts {
    done: Vec<Part>,
    /// The fixed part under way.
    open: Vec<u8>,
}

impl Parts {
    fn gather(&mut self, node: &JsonNode) {
        match node {
            JsonNode::Text(template) => match template.as_literal() {
                Some(text) => write_json_text(text, &mut self.open),
                None => {
                    self.close();
                    self.done.push(Part::Value(template.clone()));
                }
            },
            JsonNode::Number(number) => self.open.extend_from_slice(number.to_string().as_bytes()),
            JsonNode::Flag(flag) => self.open.extend_from_slice(if *flag { b"true" } else { b"false" }),
            JsonNode::Null => self.open.extend_from_slice(b"null"),
            JsonNode::List(items) => {
                self.open.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    self.comma(index);
                    self.gather(item);
                }
                self.open.push(b']');
            }
            JsonNode::Object(members) => {
                self.open.push(b'{');
                for (index, (key, member)) in members.iter().enumerate() {
                    self.comma(index);
                    write_json_text(key, &mut self.open);
                    self.open.push(b':');
                    self.gather(member);
                }
                self.open.push(b'}');
            }
        }
    }

    fn comma(&mut self, index: usize) {
        if index > 0 {
            self.open.push(b',');
        }
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.done.push(Part::Fixed(std::mem::take(&mut self.open)));
        }
    }
}

fn object(
    members: &[(std::sync::Arc<str>, JsonNode)],
    omit_empty: bool,
    record: &Record,
    scratch: &mut String,
    out: &mut Vec<u8>,
) {
    out.push(b'{');
    let begun = out.len();
    for (key, member) in members {
        let before = out.len();
        if before > begun {
            out.push(b',');
        }
        write_json_text(key, out);
        out.push(b':');
        let value = out.len();
        json(member, omit_empty, record, scratch, out);
        if omit_empty && out.get(value..) == Some(b"null") {
            out.truncate(before);
        }
    }
    out.push(b'}');
}

fn typed(
    operator: &Operator,
    limit: Option<usize>,
    template: &Template,
    record: &Record,
    scratch: &mut String,
    out: &mut Vec<u8>,
) {
    if let Operator::Metadata { source, space, path } = operator
        && let Some(datum) = record.datum(*source, space, path)
    {
        out.extend_from_slice(datum.to_json().to_string().as_bytes());
        return;
    }
    scratch.clear();
    if !record.write(operator, scratch) {
        out.extend_from_slice(b"null");
        return;
    }
    if limit.is_some() {
        scratch.clear();
        template.render(record, "", scratch);
    }
    if Record::is_number(operator) {
        out.extend_from_slice(scratch.as_bytes());
    } else {
        write_json_text(scratch, out);
    }
}

/// Whether a filter takes what a record is about.
pub fn takes(filter: &LogFilter, record: &Record, dice: &mut Dice) -> bool {
    match filter {
        LogFilter::Status(wanted) => wanted.holds(record.status.map_or(0, |status| u64::from(status.as_u16()))),
        LogFilter::Duration(wanted) => wanted.holds(u64::try_from(record.duration.as_millis()).unwrap_or(u64::MAX)),
        LogFilter::NotHealthCheck => !record.health_check,
        LogFilter::Traceable => record.trace == TraceReason::ServiceForced && !record.health_check,
        LogFilter::Sample(share) => dice.hits(*share),
        LogFilter::And(all) => all.iter().all(|filter| takes(filter, record, dice)),
        LogFilter::Or(any) => any.iter().any(|filter| takes(filter, record, dice)),
        LogFilter::Header(matcher) => matcher.matches_in(record),
        LogFilter::Flags(letters) if letters.is_empty() => !record.flags.is_empty(),
        LogFilter::Flags(letters) => letters
            .iter()
            .filter_map(|letters| engine::reply::Flags::parse(letters))
            .any(|wanted| record.flags.has(wanted)),
        LogFilter::GrpcStatus { codes, exclude } => {
            // What is no gRPC has the status that its HTTP status stands for.
            let own = record.grpc_status.map(u32::from);
            let status = own.or_else(|| record.status.map(grpc_status));
            let held = status.is_some_and(|status| codes.contains(&status));
            held != *exclude
        }
        LogFilter::Metadata { matcher, if_missing } => {
            // Whether the rule is turned round does not count: so in Envoy.
            let found = record.datum(MetadataSource::Dynamic, &matcher.space, &matcher.path);
            found.map_or(*if_missing, |datum| matcher.value.matches(Some(&datum)))
        }
    }
}

impl engine::matcher::HeaderValues for Record {
    fn joined(&self, key: &engine::matcher::HeaderKey) -> Option<std::borrow::Cow<'_, [u8]>> {
        use engine::matcher::HeaderKey;
        let text = |text: Option<&'_ str>| text.map(|text| std::borrow::Cow::Owned(text.as_bytes().to_vec()));
        match key {
            HeaderKey::Method => text(self.method.as_ref().map(http::Method::as_str)),
            HeaderKey::Path => text(self.path.as_deref().or(self.original_path.as_deref())),
            HeaderKey::Authority => text(self.authority.as_deref()),
            HeaderKey::Scheme => text(Some(self.scheme)),
            HeaderKey::Name(name) => engine::matcher::header_values(&self.request_headers, name),
        }
    }
}
