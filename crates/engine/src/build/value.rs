//! Small values that many messages share.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use ipnet::IpNet;

use proto::envoy::config::core::v3 as core;
use proto::envoy::config::route::v3 as route;
use proto::envoy::r#type::matcher::v3 as matcher;
use proto::envoy::r#type::metadata::v3 as metadata;
use proto::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;
use proto::envoy::r#type::v3 as kind;

use super::Context;
use crate::dice::Fraction;
use crate::format::{JsonNode, JsonTemplate, Template};
use crate::listener::{Address, SocketOption, SocketValue, TcpKeepalive};
use crate::matcher::{
    HeaderKey, HeaderMatcher, HeaderPattern, MetadataMatcher, Pattern, StringMatcher, StringPattern, Substitution,
    ValueMatcher,
};
use crate::metadata::MetadataKey;
use crate::tls::DataSource;

/// An address of this process's own network namespace.
pub(super) fn address(cx: &mut Context<'_>, message: &core::Address, names: bool) -> Option<Address> {
    match placed_address(cx, message, names)? {
        (address, None) => Some(address),
        (_, Some(_)) => cx.field("socket_address.network_namespace_filepath", |cx| {
            cx.refuse("is implemented for listeners and for source addresses only")
        }),
    }
}

/// An address, and the file of the network namespace it is in where that is not this process's own.
pub(super) fn placed_address(
    cx: &mut Context<'_>,
    message: &core::Address,
    names: bool,
) -> Option<(Address, Option<Arc<Path>>)> {
    use core::address::Address as Kind;
    let namespace = match &message.address {
        Some(Kind::SocketAddress(socket)) => Some(socket.network_namespace_filepath.as_str()),
        _ => None,
    };
    let namespace = namespace.filter(|path| !path.is_empty()).map(|path| Arc::from(Path::new(path)));
    Some((bare_address(cx, message, names)?, namespace))
}

fn bare_address(cx: &mut Context<'_>, message: &core::Address, names: bool) -> Option<Address> {
    use core::address::Address as Kind;
    match &message.address {
        Some(Kind::SocketAddress(socket)) => cx.field("socket_address", |cx| socket_address(cx, socket, names)),
        Some(Kind::Pipe(pipe)) if pipe.path.is_empty() => cx.field("pipe.path", |cx| cx.refuse("must not be empty")),
        Some(Kind::Pipe(pipe)) => Some(Address::Unix(Path::new(&pipe.path).into())),
        Some(Kind::EnvoyInternalAddress(_)) => cx.refuse("internal listeners are not implemented"),
        None => cx.refuse("an address is required"),
    }
}

fn socket_address(cx: &mut Context<'_>, message: &core::SocketAddress, names: bool) -> Option<Address> {
    if message.protocol != core::socket_address::Protocol::Tcp as i32 {
        return cx.field("protocol", |cx| cx.refuse("only TCP is implemented"));
    }
    let port = match message.port_specifier {
        Some(core::socket_address::PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
        _ => None,
    };
    let Some(port) = port else {
        return cx.field("port_value", |cx| cx.refuse("a port from 0 to 65535 is required"));
    };
    match message.address.parse::<IpAddr>() {
        Ok(ip) => Some(Address::Socket(SocketAddr::new(ip, port))),
        Err(_) if names && !message.address.is_empty() => {
            Some(Address::Name { host: cx.share(&message.address), port })
        }
        Err(_) => cx.field("address", |cx| cx.refuse(format!("{:?} is not an IP address", message.address))),
    }
}

/// Routes and endpoints come from a server: files are followed for listeners, clusters and secrets only.
#[allow(deprecated, reason = "the old field is still sent")]
pub(super) fn from_server(cx: &mut Context<'_>, name: &'static str, source: Option<&core::ConfigSource>) -> Option<()> {
    use core::config_source::ConfigSourceSpecifier as Kind;
    match source.and_then(|source| source.config_source_specifier.as_ref()) {
        Some(Kind::Path(_) | Kind::PathConfigSource(_)) => {
            cx.field(name, |cx| cx.refuse("files are not followed here: name a server, or write it inline"))
        }
        _ => Some(()),
    }
}

pub(super) fn cidr(cx: &mut Context<'_>, message: &core::CidrRange) -> Option<IpNet> {
    let Ok(ip) = message.address_prefix.parse::<IpAddr>() else {
        return cx
            .field("address_prefix", |cx| cx.refuse(format!("{:?} is not an IP address", message.address_prefix)));
    };
    let length = super::number(message.prefix_len.as_ref(), 0);
    let range = u8::try_from(length).ok().and_then(|length| IpNet::new(ip, length).ok());
    range.map(|range| range.trunc()).or_else(|| cx.field("prefix_len", |cx| cx.refuse("is too long for the address")))
}

pub(super) fn fraction(cx: &mut Context<'_>, message: &kind::FractionalPercent) -> Option<Fraction> {
    let denominator = match message.denominator {
        0 => 100,
        1 => 10_000,
        2 => 1_000_000,
        _ => return cx.field("denominator", |cx| cx.refuse("is no known denominator")),
    };
    Some(Fraction { numerator: message.numerator, denominator })
}

/// A share: the one of its runtime key, or the default.
pub(super) fn runtime_fraction(cx: &mut Context<'_>, message: &core::RuntimeFractionalPercent) -> Option<Fraction> {
    let default = match &message.default_value {
        Some(value) => cx.field("default_value", |cx| fraction(cx, value))?,
        None => Fraction::NEVER,
    };
    Some(cx.runtime().share(&message.runtime_key, default))
}

/// A switch: the one of its runtime key, or the default; `absent` where there is no such message.
pub(super) fn runtime_flag(cx: &Context<'_>, message: Option<&core::RuntimeFeatureFlag>, absent: bool) -> bool {
    message.map_or(absent, |message| {
        cx.runtime().flag(&message.runtime_key, super::flag(message.default_value.as_ref(), false))
    })
}

/// A number: the one of its runtime key, or the default; `absent` where there is no such message.
pub(super) fn runtime_double(cx: &Context<'_>, message: Option<&core::RuntimeDouble>, absent: f64) -> f64 {
    message.map_or(absent, |message| cx.runtime().number(&message.runtime_key, message.default_value))
}

pub(super) fn data_source(cx: &mut Context<'_>, message: &core::DataSource) -> Option<DataSource> {
    use core::data_source::Specifier;
    match &message.specifier {
        Some(Specifier::Filename(name)) if !name.is_empty() => Some(DataSource::File(Path::new(name).into())),
        Some(Specifier::InlineBytes(bytes)) => Some(DataSource::Inline(Bytes::from(bytes.clone()))),
        Some(Specifier::InlineString(text)) => Some(DataSource::Inline(Bytes::from(text.clone()))),
        Some(Specifier::EnvironmentVariable(name)) if !name.is_empty() => Some(DataSource::Environment(cx.share(name))),
        _ => cx.refuse("one of filename, inline_bytes, inline_string, environment_variable is required"),
    }
}

/// A source whose content the engine itself needs: it reads no files.
pub(super) fn inline_bytes(cx: &mut Context<'_>, message: &core::DataSource) -> Option<Bytes> {
    match data_source(cx, message)? {
        DataSource::Inline(bytes) => Some(bytes),
        _ => cx.refuse("only inline_string and inline_bytes are implemented here"),
    }
}

pub(super) fn socket_option(cx: &mut Context<'_>, message: &core::SocketOption) -> Option<SocketOption> {
    let (Ok(level), Ok(name)) = (i32::try_from(message.level), i32::try_from(message.name)) else {
        return cx.refuse("level and name must fit 32 bits");
    };
    let value = match &message.value {
        Some(core::socket_option::Value::IntValue(number)) => match i32::try_from(*number) {
            Ok(number) => SocketValue::Int(number),
            Err(_) => return cx.field("int_value", |cx| cx.refuse("must fit 32 bits")),
        },
        Some(core::socket_option::Value::BufValue(bytes)) => SocketValue::Bytes(Bytes::from(bytes.clone())),
        None => return cx.refuse("int_value or buf_value is required"),
    };
    Some(SocketOption { level, name, value })
}

pub(super) fn keepalive(message: &core::TcpKeepalive) -> TcpKeepalive {
    let seconds = |value: Option<&proto::google::protobuf::UInt32Value>| {
        value.map(|value| std::time::Duration::from_secs(u64::from(value.value)))
    };
    TcpKeepalive {
        probes: message.keepalive_probes.as_ref().map(|value| value.value),
        time: seconds(message.keepalive_time.as_ref()),
        interval: seconds(message.keepalive_interval.as_ref()),
    }
}

pub(super) fn string(cx: &mut Context<'_>, message: &matcher::StringMatcher) -> Option<StringMatcher> {
    use matcher::string_matcher::MatchPattern;
    let pattern = match &message.match_pattern {
        Some(MatchPattern::Exact(text)) => StringPattern::Exact(cx.share(text)),
        Some(MatchPattern::Prefix(text)) => StringPattern::Prefix(non_empty(cx, "prefix", text)?),
        Some(MatchPattern::Suffix(text)) => StringPattern::Suffix(non_empty(cx, "suffix", text)?),
        Some(MatchPattern::Contains(text)) => StringPattern::Contains(non_empty(cx, "contains", text)?),
        Some(MatchPattern::SafeRegex(regex)) => StringPattern::Regex(cx.field("safe_regex", |cx| pattern(cx, regex))?),
        Some(MatchPattern::Custom(_)) => return cx.field("custom", |cx| cx.refuse("is not implemented")),
        None => return cx.refuse("a pattern is required"),
    };
    Some(StringMatcher { pattern, ignore_case: message.ignore_case })
}

fn non_empty(cx: &mut Context<'_>, name: &'static str, text: &str) -> Option<Arc<str>> {
    cx.needed(name, text)
}

pub(super) fn pattern(cx: &mut Context<'_>, message: &matcher::RegexMatcher) -> Option<Pattern> {
    cx.field("regex", |cx| match Pattern::new(&message.regex) {
        Ok(_) if message.regex.is_empty() => cx.refuse("must not be empty"),
        Ok(pattern) => Some(pattern),
        Err(error) => cx.refuse(error.to_string()),
    })
}

pub(super) fn substitution(cx: &mut Context<'_>, message: &matcher::RegexMatchAndSubstitute) -> Option<Substitution> {
    cx.required("pattern", message.pattern.as_ref(), |cx, regex| {
        match Substitution::new(&regex.regex, &message.substitution) {
            Ok(substitution) => Some(substitution),
            Err(error) => cx.field("regex", |cx| cx.refuse(error.to_string())),
        }
    })
}

pub(super) fn header_key(cx: &mut Context<'_>, field: &'static str, name: &str) -> Option<HeaderKey> {
    HeaderKey::parse(name).or_else(|| cx.field(field, |cx| cx.refuse(format!("{name:?} is no header name"))))
}

pub(super) fn metadata_key(cx: &mut Context<'_>, message: &metadata::MetadataKey) -> Option<MetadataKey> {
    let space = cx.needed("key", &message.key)?;
    if message.path.is_empty() {
        return cx.field("path", |cx| cx.refuse("must not be empty"));
    }
    let path = cx.list("path", &message.path, |cx, segment| match &segment.segment {
        Some(Segment::Key(key)) if !key.is_empty() => Some(cx.share(key)),
        _ => cx.refuse("a key is required"),
    });
    Some(MetadataKey { space, path })
}

pub(super) fn header_name(cx: &mut Context<'_>, name: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(name.as_bytes()).ok().or_else(|| cx.refuse(format!("{name:?} is no header name")))
}

/// A header value, or `None` for an empty text.
pub(super) fn header_value(cx: &mut Context<'_>, field: &'static str, text: &str) -> Option<HeaderValue> {
    if text.is_empty() {
        return None;
    }
    HeaderValue::from_str(text).ok().or_else(|| cx.field(field, |cx| cx.refuse("has a character no header may have")))
}

#[allow(deprecated, reason = "Control planes still send the old forms")]
pub(super) fn header(cx: &mut Context<'_>, message: &route::HeaderMatcher) -> Option<HeaderMatcher> {
    use route::header_matcher::HeaderMatchSpecifier as Kind;
    let key = header_key(cx, "name", &message.name)?;
    let plain = |pattern: StringPattern| HeaderPattern::Value(StringMatcher { pattern, ignore_case: false });
    let pattern = match &message.header_match_specifier {
        None => HeaderPattern::Present(true),
        Some(Kind::PresentMatch(wanted)) => HeaderPattern::Present(*wanted),
        Some(Kind::ExactMatch(text)) => plain(StringPattern::Exact(cx.share(text))),
        Some(Kind::PrefixMatch(text)) => plain(StringPattern::Prefix(cx.needed("prefix_match", text)?)),
        Some(Kind::SuffixMatch(text)) => plain(StringPattern::Suffix(cx.needed("suffix_match", text)?)),
        Some(Kind::ContainsMatch(text)) => plain(StringPattern::Contains(cx.needed("contains_match", text)?)),
        Some(Kind::SafeRegexMatch(regex)) => {
            plain(StringPattern::Regex(cx.field("safe_regex_match", |cx| pattern(cx, regex))?))
        }
        Some(Kind::StringMatch(text)) => HeaderPattern::Value(cx.field("string_match", |cx| string(cx, text))?),
        Some(Kind::RangeMatch(range)) => HeaderPattern::Range { start: range.start, end: range.end },
    };
    Some(HeaderMatcher {
        key,
        pattern,
        invert: message.invert_match,
        missing_is_empty: message.treat_missing_header_as_empty,
    })
}

pub(super) fn metadata(cx: &mut Context<'_>, message: &matcher::MetadataMatcher) -> Option<MetadataMatcher> {
    use matcher::metadata_matcher::path_segment::Segment;
    let space = cx.needed("filter", &message.filter)?;
    let path = cx.list("path", &message.path, |cx, segment| match &segment.segment {
        Some(Segment::Key(key)) if !key.is_empty() => Some(cx.share(key)),
        _ => cx.refuse("a key is required"),
    });
    if message.path.is_empty() {
        return cx.field("path", |cx| cx.refuse("must not be empty"));
    }
    let value = cx.required("value", message.value.as_ref(), value)?;
    Some(MetadataMatcher { space, path, value, invert: message.invert })
}

fn value(cx: &mut Context<'_>, message: &matcher::ValueMatcher) -> Option<ValueMatcher> {
    use matcher::double_matcher::MatchPattern as Double;
    use matcher::list_matcher::MatchPattern as List;
    use matcher::value_matcher::MatchPattern as Kind;
    match &message.match_pattern {
        Some(Kind::NullMatch(_)) => Some(ValueMatcher::Null),
        Some(Kind::StringMatch(text)) => cx.field("string_match", |cx| string(cx, text)).map(ValueMatcher::Text),
        Some(Kind::BoolMatch(wanted)) => Some(ValueMatcher::Flag(*wanted)),
        Some(Kind::PresentMatch(wanted)) => Some(ValueMatcher::Present(*wanted)),
        Some(Kind::DoubleMatch(double)) => match &double.match_pattern {
            Some(Double::Exact(number)) => Some(ValueMatcher::Number(*number)),
            Some(Double::Range(range)) => Some(ValueMatcher::Range { start: range.start, end: range.end }),
            None => cx.field("double_match", |cx| cx.refuse("exact or range is required")),
        },
        Some(Kind::ListMatch(list)) => cx.field("list_match", |cx| match &list.match_pattern {
            Some(List::OneOf(inner)) => {
                cx.field("one_of", |cx| value(cx, inner)).map(|v| ValueMatcher::AnyOf(Box::new(v)))
            }
            None => cx.refuse("one_of is required"),
        }),
        Some(Kind::OrMatch(or)) => {
            let all = cx.field("or_match", |cx| cx.list("value_matchers", &or.value_matchers, value));
            Some(ValueMatcher::Or(all))
        }
        None => cx.refuse("a pattern is required"),
    }
}

pub(super) fn template(cx: &mut Context<'_>, text: &str) -> Option<Template> {
    Template::parse(text).map_err(|error| cx.fault(error.to_string())).ok()
}

/// Text or JSON with operators.
pub(super) enum Substituted {
    Text(Template),
    Json(JsonTemplate),
}

#[allow(deprecated, reason = "text_format is what most files still say")]
pub(super) fn substituted(cx: &mut Context<'_>, message: &core::SubstitutionFormatString) -> Option<Substituted> {
    use core::substitution_format_string::Format;
    match &message.format {
        Some(Format::TextFormat(text)) => cx.field("text_format", |cx| template(cx, text)).map(Substituted::Text),
        Some(Format::TextFormatSource(source)) => cx.field("text_format_source", |cx| {
            let bytes = inline_bytes(cx, source)?;
            match std::str::from_utf8(&bytes) {
                Ok(text) => template(cx, text).map(Substituted::Text),
                Err(_) => cx.refuse("is not UTF-8"),
            }
        }),
        Some(Format::JsonFormat(tree)) => {
            cx.field("json_format", |cx| json_template(cx, tree, message.omit_empty_values).map(Substituted::Json))
        }
        None => cx.refuse("text_format, text_format_source or json_format is required"),
    }
}

pub(super) fn json_template(
    cx: &mut Context<'_>,
    tree: &proto::google::protobuf::Struct,
    omit_empty: bool,
) -> Option<JsonTemplate> {
    Some(JsonTemplate { root: json_object(cx, tree), omit_empty })
}

fn json_object(cx: &mut Context<'_>, tree: &proto::google::protobuf::Struct) -> JsonNode {
    let mut members: Vec<_> = tree.fields.iter().collect();
    members.sort_by_key(|(name, _)| *name);
    let built = members
        .into_iter()
        .filter_map(|(name, value)| cx.key("fields", name, |cx| Some((cx.share(name), json_node(cx, value)?))));
    JsonNode::Object(built.collect())
}

fn json_node(cx: &mut Context<'_>, value: &proto::google::protobuf::Value) -> Option<JsonNode> {
    use proto::google::protobuf::value::Kind;
    Some(match &value.kind {
        None | Some(Kind::NullValue(_)) => JsonNode::Null,
        Some(Kind::NumberValue(number)) => JsonNode::Number(*number),
        Some(Kind::BoolValue(flag)) => JsonNode::Flag(*flag),
        Some(Kind::StringValue(text)) => JsonNode::Text(template(cx, text)?),
        Some(Kind::StructValue(tree)) => json_object(cx, tree),
        Some(Kind::ListValue(list)) => JsonNode::List(cx.list("values", &list.values, json_node)),
    })
}
