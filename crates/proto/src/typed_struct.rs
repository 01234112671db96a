//! Messages that come as a Struct beside their type's name (`xds.type.v3.TypedStruct`, formerly `udpa.type.v1`): how control
//! planes send what they have no type for.

use prost::Message;

use crate::google::protobuf::Any;
use crate::istio::typed_struct::TypedStruct;
use crate::json::{self, Format};
use crate::type_url::message_name;

const NAMES: [&str; 2] = ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"];

/// The message that such a Struct stands for; `None`: the message is no such Struct.
///
/// # Errors
/// When it cannot be read as what it says it is.
pub fn open(type_url: &str, bytes: &[u8]) -> Option<Result<Any, String>> {
    if !NAMES.contains(&message_name(type_url)) {
        return None;
    }
    let typed = match TypedStruct::decode(bytes) {
        Ok(typed) => typed,
        Err(error) => return Some(Err(format!("is not a well-formed TypedStruct: {error}"))),
    };
    let name = message_name(&typed.type_url);
    if NAMES.contains(&name) {
        return Some(Err("a TypedStruct in a TypedStruct says nothing".to_owned()));
    }
    let value = typed.value.unwrap_or_default();
    let text = json::to_json_named("google.protobuf.Struct", &value.encode_to_vec()).to_string();
    let opened = json::parse_named(name, &text, Format::Json).map_err(|faults| {
        let faults = faults.into_iter().map(|fault| format!("{}: {}", fault.path, fault.message));
        faults.collect::<Vec<_>>().join("; ")
    });
    Some(opened.map(|value| Any { type_url: typed.type_url.clone(), value }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::istio::stats::PluginConfig;

    fn typed(type_url: &str, value: &str) -> Vec<u8> {
        let value = json::parse(value, Format::Json).unwrap();
        TypedStruct { type_url: type_url.to_owned(), value: Some(value) }.encode_to_vec()
    }

    #[test]
    fn a_struct_becomes_the_message_that_it_says_it_is() {
        let bytes = typed("type.googleapis.com/stats.PluginConfig", r#"{"disable_host_header_fallback": true}"#);
        for name in NAMES {
            let any = open(&format!("type.googleapis.com/{name}"), &bytes).unwrap().unwrap();
            assert_eq!(any.type_url, "type.googleapis.com/stats.PluginConfig");
            assert!(PluginConfig::decode(any.value.as_slice()).unwrap().disable_host_header_fallback);
        }
        assert!(open("type.googleapis.com/stats.PluginConfig", &bytes).is_none());
    }

    #[test]
    fn what_it_cannot_be_is_said() {
        let url = "type.googleapis.com/xds.type.v3.TypedStruct";
        let unknown = open(url, &typed("type.googleapis.com/no.Such", "{}")).unwrap().unwrap_err();
        assert!(unknown.contains("no.Such"), "{unknown}");
        let wrong =
            open(url, &typed("type.googleapis.com/stats.PluginConfig", r#"{"nothing": 1}"#)).unwrap().unwrap_err();
        assert!(wrong.contains("nothing"), "{wrong}");
        assert!(open(url, &typed(url, "{}")).unwrap().is_err());
        assert!(open(url, b"\xff\xff").unwrap().is_err());
    }
}
