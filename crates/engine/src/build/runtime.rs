//! The static layers of the runtime.

use proto::envoy::config::bootstrap::v3::{LayeredRuntime, runtime_layer::LayerSpecifier};
use proto::google::protobuf::{Struct, Value, value::Kind};

use super::Context;
use crate::dice::Fraction;
use crate::runtime::{Runtime, RuntimeValue};

/// Keys that switch Envoy's own code, or limit its regular expressions: nothing here asks for them.
const FOREIGN: [&str; 3] = ["envoy.reloadable_features.", "envoy.deprecated_features", "re2."];
/// How deep keys may be nested.
const DEEPEST: usize = 16;

/// The values, and the keys of them that do nothing.
pub(crate) fn runtime(cx: &mut Context<'_>, message: &LayeredRuntime) -> Option<(Runtime, Vec<String>)> {
    let mut layers = Layers { runtime: Runtime::default(), idle: Vec::new() };
    let read = cx.list("layers", &message.layers, |cx, layer| {
        cx.needed("name", &layer.name)?;
        match &layer.layer_specifier {
            Some(LayerSpecifier::StaticLayer(tree)) => {
                cx.field("static_layer", |cx| layers.object(cx, "", tree, 0));
                Some(())
            }
            // Nobody sets values by the admin address.
            Some(LayerSpecifier::AdminLayer(_)) => Some(()),
            Some(LayerSpecifier::DiskLayer(_)) => cx.field("disk_layer", |cx| cx.refuse("use a static_layer")),
            Some(LayerSpecifier::RtdsLayer(_)) => cx.field("rtds_layer", |cx| cx.refuse("is not implemented")),
            None => cx.refuse("static_layer or admin_layer is required"),
        }
    });
    (read.len() == message.layers.len()).then_some((layers.runtime, layers.idle))
}

struct Layers {
    runtime: Runtime,
    idle: Vec<String>,
}

impl Layers {
    fn object(&mut self, cx: &mut Context<'_>, prefix: &str, tree: &Struct, depth: usize) {
        if depth > DEEPEST {
            return cx.fault(format!("keys are nested deeper than {DEEPEST}"));
        }
        for (name, value) in &tree.fields {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            self.value(cx, key, value, depth);
        }
    }

    fn value(&mut self, cx: &mut Context<'_>, key: String, value: &Value, depth: usize) {
        let value = match &value.kind {
            Some(Kind::StringValue(text)) => RuntimeValue::of_text(text),
            Some(Kind::NumberValue(number)) => RuntimeValue::of_number(*number),
            Some(Kind::BoolValue(flag)) => RuntimeValue { flag: Some(*flag), ..RuntimeValue::default() },
            Some(Kind::StructValue(tree)) if is_share(tree) => {
                RuntimeValue { share: share(tree), ..RuntimeValue::default() }
            }
            Some(Kind::StructValue(tree)) => return self.object(cx, &key, tree, depth + 1),
            Some(Kind::ListValue(_) | Kind::NullValue(_)) | None => {
                return cx.key("fields", &key, |cx| cx.fault("must be a number, a switch, a text or an object"));
            }
        };
        if FOREIGN.iter().any(|foreign| key.starts_with(foreign)) {
            self.idle.push(key);
        } else {
            self.runtime.put(&key, value);
        }
    }
}

/// An object is a share where it could be one, else it nests keys.
fn is_share(tree: &Struct) -> bool {
    tree.fields.is_empty() || ["numerator", "denominator"].iter().any(|name| tree.fields.contains_key(*name))
}

fn share(tree: &Struct) -> Option<Fraction> {
    let kind = |name| tree.fields.get(name).and_then(|value| value.kind.as_ref());
    let numerator = match kind("numerator") {
        None => 0,
        Some(Kind::NumberValue(number)) if (0.0..=f64::from(u32::MAX)).contains(number) => *number as u32,
        Some(_) => return None,
    };
    let denominator = match kind("denominator") {
        None => 100,
        Some(Kind::StringValue(name)) => match name.as_str() {
            "HUNDRED" => 100,
            "TEN_THOUSAND" => 10_000,
            "MILLION" => 1_000_000,
            _ => return None,
        },
        Some(_) => return None,
    };
    Some(Fraction { numerator, denominator })
}

#[cfg(test)]
mod tests {
    use proto::envoy::config::bootstrap::v3::Bootstrap;
    use proto::json::{Format, parse};

    use crate::store::Store;

    fn load(layers: &str) -> (Store, Vec<String>) {
        let text = format!("layered_runtime: {{layers: {layers}}}");
        let bootstrap: Bootstrap = parse(&text, Format::Yaml).expect("a bootstrap");
        let mut store = Store::new();
        let faults = store.bootstrap(&bootstrap).err().unwrap_or_default();
        (store, faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn keys_nest_and_later_layers_count() {
        let key = "global_downstream_max_connections";
        let (store, faults) = load(&format!(
            "[{{name: a, static_layer: {{overload: {{{key}: 7}}}}}}, {{name: b, static_layer: {{overload.{key}: \"9\"}}}}]"
        ));
        assert_eq!((faults, store.max_clients()), (Vec::new(), Some(9)));
    }

    #[test]
    fn keys_of_envoys_own_are_told() {
        let (mut store, faults) = load("[{name: a, static_layer: {re2.max_program_size.error_level: 1, other: 2}}]");
        assert!(faults.is_empty());
        let fields: Vec<_> = store.take_ignored().into_iter().map(|ignored| ignored.field).collect();
        assert_eq!(fields, ["layers: re2.max_program_size.error_level: a runtime key of Envoy's own"]);
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_its_place() {
        let (_, faults) = load("[{name: a, static_layer: {k: [1]}}, {name: b, disk_layer: {symlink_root: /x}}]");
        let told = faults.join("\n");
        assert!(told.contains("layers[0].static_layer.fields[\"k\"]: must be a number"), "{told}");
        assert!(told.contains("layers[1].disk_layer: use a static_layer"), "{told}");
    }
}
