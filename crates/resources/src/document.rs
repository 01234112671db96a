//! One document: which kind it is, its metadata, and who reads the rest.

use std::collections::HashSet;
use std::sync::Arc;

use model::{Declaration, Diagnostic, Entry, Labels, MeshConfig, ObjectKey, Origin, Severity};

use crate::field::{Field, Object};
use crate::node::{Node, Value};
use crate::report::Report;
use crate::yaml::{Fault, FaultKind};
use crate::{ParseOptions, Parsed, codes, istio, kubernetes, names, native, smi};

/// Reads the fields below `spec` (or beside it).
type Reader = fn(&Object<'_>, &Subject<'_>) -> Vec<Declaration>;

/// The group of the kinds of our own.
pub(crate) const OWN_GROUP: &str = "tulle.dev";

/// What a kind's reader knows about its object.
pub(crate) struct Subject<'o> {
    pub(crate) key: Arc<ObjectKey>,
    pub(crate) labels: Labels,
    pub(crate) annotations: Vec<(String, String)>,
    /// `metadata.creationTimestamp`, empty where unknown.
    pub(crate) created: String,
    /// The whole object's place.
    pub(crate) origin: Origin,
    pub(crate) options: &'o ParseOptions,
}

impl Subject<'_> {
    /// The object's namespace.
    pub(crate) fn namespace(&self) -> String {
        self.key.namespace.clone()
    }

    /// Whether the object has a name.
    pub(crate) fn named(&self) -> bool {
        !self.key.name.is_empty()
    }
}

/// A kind that can be read.
struct Kind {
    group: &'static str,
    name: &'static str,
    versions: &'static [&'static str],
    namespaced: bool,
    /// Whether `spec` must be given.
    spec: bool,
    read: Reader,
}

const NETWORKING: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SECURITY: &[&str] = &["v1", "v1beta1"];
const SPLIT: &[&str] = &["v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"];

const KINDS: &[Kind] = &[
    istio("networking.istio.io", "VirtualService", NETWORKING, true, istio::virtual_service::read),
    istio("networking.istio.io", "DestinationRule", NETWORKING, true, istio::destination_rule::read),
    istio("networking.istio.io", "ServiceEntry", NETWORKING, true, istio::service_entry::read),
    istio("networking.istio.io", "WorkloadEntry", NETWORKING, true, istio::workload_entry::read),
    istio("networking.istio.io", "WorkloadGroup", NETWORKING, true, istio::workload_group::read),
    istio("security.istio.io", "PeerAuthentication", SECURITY, false, istio::peer_authentication::read),
    istio("security.istio.io", "RequestAuthentication", SECURITY, false, istio::request_authentication::read),
    istio("security.istio.io", "AuthorizationPolicy", SECURITY, false, istio::authorization_policy::read),
    istio("split.smi-spec.io", "TrafficSplit", SPLIT, true, smi::read),
    istio("", "Service", &["v1"], true, kubernetes::service),
    Kind { namespaced: false, ..istio("", "Namespace", &["v1"], false, kubernetes::namespace) },
    istio(OWN_GROUP, "Workload", &["v1alpha1"], true, native::workload),
];

const fn istio(
    group: &'static str,
    name: &'static str,
    versions: &'static [&'static str],
    spec: bool,
    read: Reader,
) -> Kind {
    Kind { group, name, versions, namespaced: true, spec, read }
}

/// Kinds that are known, and why they take no effect.
const UNSUPPORTED: &[(&str, &[&str])] = &[
    ("networking.istio.io", &["Gateway", "Sidecar", "EnvoyFilter", "ProxyConfig"]),
    ("telemetry.istio.io", &["Telemetry"]),
    ("extensions.istio.io", &["WasmPlugin", "TrafficExtension"]),
    (
        "gateway.networking.k8s.io",
        &[
            "Gateway",
            "GatewayClass",
            "HTTPRoute",
            "GRPCRoute",
            "TCPRoute",
            "TLSRoute",
            "UDPRoute",
            "ReferenceGrant",
            "BackendTLSPolicy",
            "ListenerSet",
        ],
    ),
    ("specs.smi-spec.io", &["HTTPRouteGroup", "TCPRoute", "UDPRoute"]),
    ("access.smi-spec.io", &["TrafficTarget", "IdentityBinding"]),
    ("metrics.smi-spec.io", &["TrafficMetrics"]),
    ("gateway.networking.x-k8s.io", &["XListenerSet", "XBackendTrafficPolicy", "XMesh"]),
];

/// Groups of Kubernetes whose kinds stand beside a mesh's in many directories and declare nothing about it.
const PLAIN: &[&str] = &[
    "apps",
    "batch",
    "autoscaling",
    "policy",
    "storage.k8s.io",
    "scheduling.k8s.io",
    "rbac.authorization.k8s.io",
    "apiextensions.k8s.io",
];

/// A document that is no YAML.
pub(crate) fn unreadable(fault: Fault, options: &ParseOptions) -> Vec<Diagnostic> {
    let report = Report::new(options.file.clone());
    let code = match fault.kind {
        FaultKind::Syntax => codes::SYNTAX,
        FaultKind::DuplicateKey => codes::DUPLICATE_KEY,
        FaultKind::TooLarge => codes::TOO_LARGE,
    };
    let finding = report.add(Severity::Error, code, "", fault.span, fault.message);
    if let Some((span, text)) = fault.other {
        finding.also(span, text);
    }
    report.into_diagnostics()
}

/// Reads one document, or each item of a `List`.
pub(crate) fn read(node: &Node, options: &ParseOptions, seen: &mut HashSet<ObjectKey>, into: &mut Parsed) {
    let is_list = node.text("kind").is_some_and(|kind| kind.ends_with("List"));
    if let (true, Some(items)) = (is_list, node.entry("items"))
        && let Value::List(items) = &items.node.value
    {
        for item in items {
            read(item, options, seen, into);
        }
        return;
    }
    let report = Report::new(options.file.clone());
    let entry = object(node, options, &report, seen);
    if let (Some(entry), false) = (entry, report.failed()) {
        into.entries.push(entry);
    }
    into.diagnostics.append(&mut report.into_diagnostics());
}

/// Reads a mapping of MeshConfig fields.
pub(crate) fn read_mesh(node: &Node, options: &ParseOptions) -> (Option<MeshConfig>, Vec<Diagnostic>) {
    let report = Report::new(options.file.clone());
    let mesh = istio::mesh_config::read(&Field::root(node, &report).object());
    (Some(mesh).filter(|_| !report.failed()), report.into_diagnostics())
}

fn object(node: &Node, options: &ParseOptions, report: &Report, seen: &mut HashSet<ObjectKey>) -> Option<Entry> {
    let root = Field::root(node, report);
    if !matches!(node.value, Value::Map(_)) {
        root.error(codes::NOT_AN_OBJECT, format!("expected an object, found {}", node.value.describe()))
            .help("an object begins with apiVersion, kind and metadata");
        return None;
    }
    if node.entry("kind").is_none() {
        if node.entry("mesh").is_some_and(|mesh| matches!(mesh.node.value, Value::Map(_))) {
            return Some(mesh_options(&root, report));
        }
        if let Some(kind) = node.text("type") {
            // What Kuma writes on machines without Kubernetes.
            root.error(codes::UNSUPPORTED_KIND, format!("{kind} of Kuma is not supported yet"));
            return None;
        }
    }
    let object = root.object();
    let (version, kind) = (object.need("apiVersion"), object.need("kind"));
    let (Some(version), Some(kind)) = (version, kind) else {
        object.ignore_rest();
        return None;
    };
    let (version_text, kind_text) = (version.filled(), kind.filled());
    let (group, number) = version_text.rsplit_once('/').unwrap_or(("", &version_text));
    if kind_text == "MeshConfig" && (group == "mesh.istio.io" || group == OWN_GROUP || group == "install.istio.io") {
        return Some(mesh_object(&object, group, report));
    }
    let Some(known) = KINDS.iter().find(|known| known.group == group && known.name == kind_text) else {
        subject(&object, group, &kind_text, true, options, report);
        unknown(&version, &kind, group, &kind_text);
        object.ignore_rest();
        return None;
    };
    if !known.versions.contains(&number) {
        version
            .error(codes::UNKNOWN_VERSION, format!("{kind_text} has no version `{number}`"))
            .help(format!("write one of {}", versions(known)));
    }
    let subject = subject(&object, group, known.name, known.namespaced, options, report);
    let declarations = declarations(&object, known, &subject);
    if subject.named() && !seen.insert((*subject.key).clone()) {
        kind.error(codes::DECLARED_TWICE, format!("{} is declared twice in this file", subject.key))
            .help("the first one takes effect; remove or rename this one");
    }
    Some(Entry { key: (*subject.key).clone(), declarations })
}

fn declarations(object: &Object<'_>, known: &Kind, subject: &Subject<'_>) -> Vec<Declaration> {
    object.ignore(&["status"]);
    // Kubernetes' own kinds have fields beside `spec`, which matter to no mesh.
    let spec = if known.spec { object.need("spec") } else { object.get("spec") };
    match spec {
        Some(spec) => (known.read)(&spec.object(), subject),
        None if known.spec => Vec::new(),
        None => {
            let nothing = Node { value: Value::Null, span: object.field.span() };
            (known.read)(&object.field.instead(&nothing, "spec").object(), subject)
        }
    }
}

fn versions(kind: &Kind) -> String {
    let slash = if kind.group.is_empty() { "" } else { "/" };
    kind.versions.iter().map(|version| format!("{}{slash}{version}", kind.group)).collect::<Vec<_>>().join(", ")
}

/// Reads `metadata` and tells the report which object this is.
fn subject<'o>(
    object: &Object<'_>,
    group: &str,
    kind: &str,
    namespaced: bool,
    options: &'o ParseOptions,
    report: &Report,
) -> Subject<'o> {
    let metadata = object.get("metadata").map(|field| field.object());
    let text = |name| metadata.as_ref().and_then(|m| m.get(name)).map(|field| field.filled()).unwrap_or_default();
    let name = text("name");
    if name.is_empty() && metadata.as_ref().is_none_or(|m| m.get("name").is_none()) {
        object.missing("metadata.name").help("name the object: metadata: {name: ...}");
    } else if let (Err(why), Some(field)) = (names::object_name(&name), metadata.as_ref().and_then(|m| m.get("name"))) {
        field.bad_name(codes::NAME, "name", &name, &why);
    }
    let mut namespace = if namespaced { text("namespace") } else { String::new() };
    if namespaced && namespace.is_empty() {
        namespace.clone_from(&options.default_namespace);
    }
    if let (true, Err(why)) = (namespaced, names::dns_label(&namespace))
        && let Some(field) = metadata.as_ref().and_then(|m| m.get("namespace"))
    {
        field.bad_name(codes::NAME, "namespace", &namespace, &why);
    }
    let labels = metadata.as_ref().and_then(|m| m.get("labels")).map(|field| field.labels()).unwrap_or_default();
    let annotations =
        metadata.as_ref().and_then(|m| m.get("annotations")).map(|field| field.text_map()).unwrap_or_default();
    let created = text("creationTimestamp");
    if let Some(metadata) = metadata {
        metadata.ignore_rest();
    }
    report.name(ObjectKey { group: group.to_owned(), kind: kind.to_owned(), namespace, name });
    let origin = report.origin(String::new(), object.field.node.span);
    Subject { key: report.object(), labels, annotations, created, origin, options }
}

fn unknown(version: &Field<'_>, kind: &Field<'_>, group: &str, name: &str) {
    const KEEP_OUT: &str = "keep it out of this directory; the other objects take effect";
    let ours = KINDS.iter().any(|known| known.group == group);
    if !ours || UNSUPPORTED.iter().any(|(known, kinds)| *known == group && kinds.contains(&name)) {
        if PLAIN.contains(&group) {
            kind.note(
                codes::UNSUPPORTED_KIND,
                format!("{name} says nothing to a mesh without Kubernetes: it is left out"),
            );
            return;
        }
        let api = if group.is_empty() { "Kubernetes" } else { group };
        let finding = kind.error(codes::UNSUPPORTED_KIND, format!("{name} of {api} is not supported yet"));
        match KINDS.iter().find(|known| known.name == name) {
            Some(same) => finding.help(format!("the {name} that is supported is of {}", versions(same))),
            None => finding.help(KEEP_OUT),
        };
        return;
    }
    if let Some(same) = KINDS.iter().find(|known| known.name == name) {
        version
            .error(codes::UNKNOWN_KIND, format!("{} has no kind {name}", version.text()))
            .help(format!("{name} belongs to {}", versions(same)));
        return;
    }
    let near = names::nearest(name, KINDS.iter().filter(|known| known.group == group).map(|known| known.name));
    match near {
        Some(near) => {
            kind.error(codes::UNKNOWN_KIND, format!("no kind {name} is known")).help(format!("did you mean {near}?"))
        }
        None if group.is_empty() => kind
            .note(codes::UNSUPPORTED_KIND, format!("{name} says nothing to a mesh without Kubernetes: it is left out")),
        None => kind
            .error(codes::UNSUPPORTED_KIND, format!("{name} of `{}` is not supported", version.text()))
            .help(KEEP_OUT),
    };
}

fn mesh_key(group: &str) -> ObjectKey {
    ObjectKey {
        group: group.to_owned(),
        kind: "MeshConfig".to_owned(),
        namespace: String::new(),
        name: "mesh".to_owned(),
    }
}

/// `mesh: {trustDomain: ...}`.
fn mesh_options(root: &Field<'_>, report: &Report) -> Entry {
    report.name(mesh_key(""));
    let object = root.object();
    let mesh = object.get("mesh").map(|field| istio::mesh_config::read(&field.object())).unwrap_or_default();
    Entry { key: mesh_key(""), declarations: vec![Declaration::Mesh(mesh)] }
}

/// A document of kind MeshConfig, its fields below `spec` or beside `kind`.
fn mesh_object(object: &Object<'_>, group: &str, report: &Report) -> Entry {
    report.name(mesh_key(group));
    object.ignore(&["metadata"]);
    let mesh = match object.get("spec") {
        Some(spec) => istio::mesh_config::read(&spec.object()),
        None => istio::mesh_config::read(object),
    };
    Entry { key: mesh_key(group), declarations: vec![Declaration::Mesh(mesh)] }
}
