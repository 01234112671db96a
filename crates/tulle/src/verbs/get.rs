//! `tulle get`.

use control::api::Object;
use serde_json::json;

use super::connection::{Connection, ask};
use super::table;
use crate::cli::Global;
use crate::output::{self, Exit, fail};

/// List what is declared, with its state
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tulle get -A\n  tulle get virtualservice catalog -n shop -o yaml")]
pub(crate) struct Args {
    /// Kind, also plural or short: virtualservices, vs
    kind: Option<String>,
    /// Name
    name: Option<String>,
    /// Namespace
    #[arg(short, long, value_name = "NAMESPACE", env = "TULLE_NAMESPACE", default_value = "default")]
    namespace: String,
    /// All namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Leave the headings out
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    connection: Connection,
}

/// How lists are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Format {
    #[default]
    Table,
    Wide,
    Name,
    Json,
    Yaml,
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    match get(&args, global) {
        Ok(exit) | Err(exit) => exit,
    }
}

fn get(args: &Args, global: &Global) -> Result<Exit, Exit> {
    let client = args.connection.client()?;
    let namespace = (!args.all_namespaces).then_some(args.namespace.as_str());
    let objects = ask(client.objects(args.kind.as_deref(), namespace, args.name.as_deref()))?;
    if let (Some(name), true) = (&args.name, objects.is_empty()) {
        let kind = args.kind.as_deref().unwrap_or("object");
        let message = format!("there is no {kind} {}/{name}", args.namespace);
        return Ok(fail(Exit::No, message, Some("tulle get -A lists what there is")));
    }
    if objects.is_empty() && !global.quiet {
        eprintln!("nothing is declared there");
    }
    output::print(&render(&objects, args.output, args.no_headers, args.name.is_some()));
    Ok(Exit::Done)
}

fn render(objects: &[Object], format: Format, no_headers: bool, single: bool) -> String {
    match format {
        Format::Json | Format::Yaml => {
            let value = match objects {
                [only] if single => only.object.clone(),
                all => json!({
                    "apiVersion": "v1",
                    "kind": "List",
                    "items": all.iter().map(|object| object.object.clone()).collect::<Vec<_>>(),
                }),
            };
            structured(&value, format)
        }
        Format::Name => {
            objects.iter().map(|object| format!("{}/{}\n", object.kind.to_lowercase(), object.name)).collect()
        }
        Format::Table | Format::Wide => {
            let wide = format == Format::Wide;
            let mut headings = vec!["NAMESPACE", "KIND", "NAME", "STATUS", "PROXIES", "ORIGIN"];
            if wide {
                headings.extend(["REVISION", "FINDINGS"]);
            }
            let rows: Vec<Vec<String>> = objects.iter().flat_map(|object| rows(object, wide)).collect();
            table::render(if no_headers || rows.is_empty() { &[] } else { &headings }, &rows)
        }
    }
}

/// JSON or YAML text of a value.
pub(super) fn structured(value: &serde_json::Value, format: Format) -> String {
    if format == Format::Yaml {
        return proto::json::value_to_yaml(value);
    }
    format!("{}\n", serde_json::to_string_pretty(value).unwrap_or_default())
}

fn rows(object: &Object, wide: bool) -> Vec<Vec<String>> {
    let error = object.findings.iter().find(|finding| finding.severity == "error");
    let (status, proxies) = match (&object.programmed, error) {
        (_, Some(finding)) if !object.accepted => (format!("rejected {}", finding.code), "-".to_owned()),
        (Some(programmed), _) if programmed.proxies > 0 => {
            let status = if programmed.missing.is_empty() { "programmed" } else { "pending" };
            (status.to_owned(), format!("{}/{}", programmed.acknowledged, programmed.proxies))
        }
        _ if object.accepted => ("accepted".to_owned(), "-".to_owned()),
        _ => ("not used".to_owned(), "-".to_owned()),
    };
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let origin = object.origin.strip_prefix("redb:").map_or(object.origin.as_str(), |_| "redb");
    let mut row =
        vec![dash(&object.namespace), object.kind.clone(), object.name.clone(), status, proxies, origin.to_owned()];
    if wide {
        row.push(object.revision.map_or_else(|| "-".to_owned(), |revision| revision.to_string()));
        let finding = |finding: &control::api::Finding| format!("{} {}", finding.code, finding.message);
        row.push(dash(&object.findings.iter().map(finding).collect::<Vec<_>>().join("; ")));
    }
    vec![row]
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::api::{Finding, Missing, Programmed};

    fn objects() -> Vec<Object> {
        let good = Object {
            api_version: "networking.istio.io/v1".to_owned(),
            kind: "VirtualService".to_owned(),
            namespace: "shop".to_owned(),
            name: "catalog".to_owned(),
            origin: "redb:VirtualService/shop/catalog:1".to_owned(),
            revision: Some(7),
            accepted: true,
            programmed: Some(Programmed {
                revision: 9,
                proxies: 2,
                acknowledged: 1,
                missing: vec![Missing { proxy: "p".to_owned(), reason: "it did not answer yet".to_owned() }],
            }),
            object: json!({"kind": "VirtualService"}),
            ..Object::default()
        };
        let bad = Object {
            kind: "?".to_owned(),
            name: "shop/bad.yaml:3".to_owned(),
            origin: "shop/bad.yaml:3".to_owned(),
            findings: vec![Finding {
                code: "TL0001".to_owned(),
                severity: "error".to_owned(),
                message: "no YAML".to_owned(),
                ..Finding::default()
            }],
            ..Object::default()
        };
        vec![good, bad]
    }

    #[test]
    fn a_table_shows_what_is_rejected_too() {
        assert_eq!(
            render(&objects(), Format::Wide, false, false),
            "NAMESPACE  KIND            NAME             STATUS           PROXIES  ORIGIN           REVISION  FINDINGS\n\
             shop       VirtualService  catalog          pending          1/2      redb             7         -\n\
             -          ?               shop/bad.yaml:3  rejected TL0001  -        shop/bad.yaml:3  -         TL0001 no YAML\n"
        );
        assert_eq!(render(&objects(), Format::Name, false, false), "virtualservice/catalog\n?/shop/bad.yaml:3\n");
    }

    #[test]
    fn one_object_is_printed_as_itself() {
        let one = &objects()[..1];
        assert_eq!(render(one, Format::Json, false, true), "{\n  \"kind\": \"VirtualService\"\n}\n");
        assert!(render(one, Format::Yaml, false, false).starts_with("apiVersion: v1\nkind: List\n"));
    }
}
