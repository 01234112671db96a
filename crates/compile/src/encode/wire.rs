//! Messages to bytes, always in the same order.
//!
//! The message types keep maps in hash order; [`sorted`] puts the entries of every map of the messages that
//! Tulle writes in order of their bytes, so that equal content has equal bytes and one version.

use std::collections::HashMap;

use proto::google::protobuf::{
    Any, BoolValue, Duration, ListValue, Struct, UInt32Value, UInt64Value, Value, value::Kind,
};

/// Where the maps of a message type are: its own map fields, and the fields that hold messages with maps.
pub(crate) struct Shape {
    maps: &'static [u32],
    inner: &'static [(u32, &'static Self)],
}

pub(crate) static FLAT: Shape = Shape { maps: &[], inner: &[] };
static STRUCT: Shape = Shape { maps: &[1], inner: &[(1, &STRUCT_ENTRY)] };
/// `xds.type.v3.TypedStruct`.
pub(crate) static TYPED_STRUCT: Shape = Shape { maps: &[], inner: &[(2, &STRUCT)] };
static STRUCT_ENTRY: Shape = Shape { maps: &[], inner: &[(2, &VALUE)] };
static VALUE: Shape = Shape { maps: &[], inner: &[(5, &STRUCT), (6, &LIST)] };
static LIST: Shape = Shape { maps: &[], inner: &[(1, &VALUE)] };
static METADATA: Shape = Shape { maps: &[1, 2], inner: &[(1, &METADATA_ENTRY)] };
static METADATA_ENTRY: Shape = Shape { maps: &[], inner: &[(2, &STRUCT)] };
static FILTER_CHAIN: Shape = Shape { maps: &[], inner: &[(5, &METADATA)] };
/// `envoy.config.listener.v3.Listener`.
pub(crate) static LISTENER: Shape =
    Shape { maps: &[], inner: &[(3, &FILTER_CHAIN), (6, &METADATA), (25, &FILTER_CHAIN)] };
/// `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`.
pub(crate) static MANAGER: Shape = Shape { maps: &[], inner: &[(4, &ROUTES)] };
/// `envoy.config.route.v3.RouteConfiguration`.
pub(crate) static ROUTES: Shape = Shape { maps: &[16], inner: &[(2, &VIRTUAL_HOST), (17, &METADATA)] };
static VIRTUAL_HOST: Shape = Shape { maps: &[15], inner: &[(3, &ROUTE), (24, &METADATA)] };
static ROUTE: Shape = Shape { maps: &[13], inner: &[(4, &METADATA)] };
/// `envoy.config.cluster.v3.Cluster`.
pub(crate) static CLUSTER: Shape = Shape { maps: &[36], inner: &[(25, &METADATA), (33, &ASSIGNMENT)] };
/// `envoy.config.endpoint.v3.ClusterLoadAssignment`.
pub(crate) static ASSIGNMENT: Shape = Shape { maps: &[], inner: &[(2, &LOCALITY)] };
static LOCALITY: Shape = Shape { maps: &[], inner: &[(2, &LB_ENDPOINT), (9, &METADATA)] };
static LB_ENDPOINT: Shape = Shape { maps: &[], inner: &[(3, &METADATA)] };
/// The RBAC filters, of requests and of connections: both keep their rules in fields 1 and 2.
pub(crate) static RBAC_FILTER: Shape = Shape { maps: &[], inner: &[(1, &RBAC), (2, &RBAC)] };
static RBAC: Shape = Shape { maps: &[2], inner: &[] };
/// The token filter: providers by name.
pub(crate) static TOKEN_FILTER: Shape = Shape { maps: &[1], inner: &[] };
/// The file and standard-output access logs: a format in field 5 or 1, whose field 2 is a JSON object.
pub(crate) static FILE_LOG: Shape = Shape { maps: &[], inner: &[(5, &LOG_FORMAT)] };
/// See [`FILE_LOG`].
pub(crate) static STDOUT_LOG: Shape = Shape { maps: &[], inner: &[(1, &LOG_FORMAT)] };
static LOG_FORMAT: Shape = Shape { maps: &[], inner: &[(2, &STRUCT)] };

/// A message as `Any`, its bytes in stable order.
pub(crate) fn any<M: prost::Name>(message: &M, shape: &Shape) -> Any {
    Any { type_url: M::type_url(), value: sorted(&message.encode_to_vec(), shape) }
}

/// The same message with the entries of all known maps in order. Bytes that are no message come back as they are.
fn sorted(bytes: &[u8], shape: &Shape) -> Vec<u8> {
    if shape.maps.is_empty() && shape.inner.is_empty() {
        return bytes.to_vec();
    }
    rewrite(bytes, shape).unwrap_or_else(|| bytes.to_vec())
}

fn rewrite(bytes: &[u8], shape: &Shape) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut run: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut run_field = 0;
    let mut rest = bytes;
    while !rest.is_empty() {
        let before = rest;
        let tag = varint(&mut rest)?;
        let field = u32::try_from(tag >> 3).ok()?;
        let mut whole = Vec::new();
        let mut name = &[][..];
        match tag & 7 {
            0 => {
                varint(&mut rest)?;
                whole.extend_from_slice(before.get(..before.len() - rest.len())?);
            }
            1 => whole.extend_from_slice(take(before, &mut rest, 8)?),
            5 => whole.extend_from_slice(take(before, &mut rest, 4)?),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                let body = rest.get(..length)?;
                rest = rest.get(length..)?;
                name = entry_key(body).unwrap_or_default();
                put_varint(&mut whole, tag);
                match shape.inner.iter().find(|(known, _)| *known == field) {
                    Some((_, inner)) => put_bytes(&mut whole, &sorted(body, inner)),
                    None => put_bytes(&mut whole, body),
                }
            }
            _ => return None,
        }
        if run_field != field {
            flush(&mut run, &mut out);
            run_field = field;
        }
        if shape.maps.contains(&field) { run.push((name.to_vec(), whole)) } else { out.extend_from_slice(&whole) }
    }
    flush(&mut run, &mut out);
    Some(out)
}

/// The key of a map's entry: its first field.
fn entry_key(body: &[u8]) -> Option<&[u8]> {
    let mut rest = body.strip_prefix(&[0x0a])?;
    let length = usize::try_from(varint(&mut rest)?).ok()?;
    rest.get(..length)
}

fn flush(run: &mut Vec<(Vec<u8>, Vec<u8>)>, out: &mut Vec<u8>) {
    run.sort_unstable();
    for (_, entry) in run.drain(..) {
        out.extend_from_slice(&entry);
    }
}

fn take<'a>(before: &'a [u8], rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    *rest = rest.get(length..)?;
    before.get(..before.len() - rest.len())
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, body: &[u8]) {
    put_varint(out, body.len() as u64);
    out.extend_from_slice(body);
}

pub(crate) fn uint32(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(crate) fn uint64(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

pub(crate) fn boolean(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

/// A duration; longer than the protocol allows becomes its longest (about 10,000 years).
pub(crate) fn duration(value: std::time::Duration) -> Option<Duration> {
    const LONGEST: i64 = 315_576_000_000;
    let seconds = i64::try_from(value.as_secs()).unwrap_or(LONGEST).min(LONGEST);
    // Below a thousand million by definition.
    Some(Duration { seconds, nanos: value.subsec_nanos() as i32 })
}

pub(crate) fn seconds(value: u64) -> Option<Duration> {
    duration(std::time::Duration::from_secs(value))
}

/// A JSON-like object of texts.
pub(crate) fn object<K: Into<String>, V: Into<String>>(fields: impl IntoIterator<Item = (K, V)>) -> Struct {
    let fields: HashMap<String, Value> = fields.into_iter().map(|(key, value)| (key.into(), text(value))).collect();
    Struct { fields }
}

/// An object of any values.
pub(crate) fn tree<const N: usize>(fields: [(&str, Value); N]) -> Struct {
    Struct { fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

/// A list.
pub(crate) fn list<const N: usize>(values: [Value; N]) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values: values.into() })) }
}

pub(crate) fn text(value: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(value.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn maps_come_out_in_order_and_nothing_is_lost() {
        let fields = (0..40).map(|n| (format!("key-{:02}", (n * 7) % 40), format!("{n}")));
        let message = object(fields);
        let bytes = sorted(&message.encode_to_vec(), &STRUCT);
        assert_eq!(Struct::decode(bytes.as_slice()).unwrap(), message);
        assert_eq!(bytes, sorted(&message.clone().encode_to_vec(), &STRUCT));
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let places: Vec<_> = (0..40).map(|n| text.find(&format!("key-{n:02}")).unwrap()).collect();
        assert!(places.is_sorted());
    }

    #[test]
    fn garbage_comes_back_as_it_is() {
        for bytes in [&[0xffu8; 12][..], &[0x0a, 0x7f], &[0x07]] {
            assert_eq!(sorted(bytes, &LISTENER), bytes);
        }
    }
}
