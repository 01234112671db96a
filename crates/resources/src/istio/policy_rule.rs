//! One rule of an AuthorizationPolicy.

use model::StringMatch;
use model::security::{Attribute, Condition, Operation, PathMatch, PolicyRule, Source};

use crate::field::{Field, Object};
use crate::{codes, names};

/// Reads a rule.
pub(super) fn read(rule: &Field<'_>, namespace: &str) -> PolicyRule {
    let object = rule.object();
    let items = |name: &'static str| {
        let Some(field) = object.get_even_null(name) else { return Vec::new() };
        let items = field.items();
        if items.is_empty() {
            field
                .error(codes::RULE, format!("`{name}` is empty"))
                .help("remove it to match everything, or say what it matches");
        }
        items
    };
    PolicyRule {
        from: items("from").iter().map(|item| source(item, namespace)).collect(),
        to: items("to").iter().map(operation).collect(),
        when: items("when").iter().filter_map(condition).collect(),
        origin: rule.origin(),
    }
}

fn source(item: &Field<'_>, namespace: &str) -> Source {
    let outer = item.object();
    let Some(field) = outer.need("source") else { return Source::default() };
    let object = field.object();
    says_something(&object, "source");
    for account in object.given(&["serviceAccounts", "notServiceAccounts"]) {
        for other in object.given(&["principals", "notPrincipals", "namespaces", "notNamespaces"]) {
            other
                .error_at_key(
                    codes::SERVICE_ACCOUNT,
                    format!("`{}` and `{}` exclude each other", account.name(), other.name()),
                )
                .also(account.key_span(), "given here as well");
        }
    }
    let texts = |name: &'static str| matches(&object, name);
    let ranges = |name: &'static str| {
        object.get(name).map(|field| field.items().iter().filter_map(Field::ip_range).collect()).unwrap_or_default()
    };
    let accounts = |name: &'static str| {
        object
            .get(name)
            .map(|field| field.items().iter().map(|item| account(item, namespace)).collect())
            .unwrap_or_default()
    };
    Source {
        principals: texts("principals"),
        not_principals: texts("notPrincipals"),
        request_principals: texts("requestPrincipals"),
        not_request_principals: texts("notRequestPrincipals"),
        namespaces: texts("namespaces"),
        not_namespaces: texts("notNamespaces"),
        service_accounts: accounts("serviceAccounts"),
        not_service_accounts: accounts("notServiceAccounts"),
        ip_blocks: ranges("ipBlocks"),
        not_ip_blocks: ranges("notIpBlocks"),
        remote_ip_blocks: ranges("remoteIpBlocks"),
        not_remote_ip_blocks: ranges("notRemoteIpBlocks"),
    }
}

fn operation(item: &Field<'_>) -> Operation {
    let outer = item.object();
    let Some(field) = outer.need("operation") else { return Operation::default() };
    let object = field.object();
    says_something(&object, "operation");
    let texts = |name: &'static str| matches(&object, name);
    let ports = |name: &'static str| {
        object.get(name).map(|field| field.items().iter().filter_map(port_text).collect()).unwrap_or_default()
    };
    let paths =
        |name: &'static str| object.get(name).map(|field| field.items().iter().map(path).collect()).unwrap_or_default();
    Operation {
        hosts: texts("hosts"),
        not_hosts: texts("notHosts"),
        ports: ports("ports"),
        not_ports: ports("notPorts"),
        methods: texts("methods"),
        not_methods: texts("notMethods"),
        paths: paths("paths"),
        not_paths: paths("notPaths"),
    }
}

/// `source: {}` would match everything, which nobody means.
fn says_something(object: &Object<'_>, name: &str) {
    if object.is_empty() {
        object
            .field
            .error(codes::RULE, format!("the {name} says nothing"))
            .help("give at least one field; a rule `{}` matches every request");
    }
}

fn matches(object: &Object<'_>, name: &'static str) -> Vec<StringMatch> {
    let Some(field) = object.get(name) else { return Vec::new() };
    field
        .items()
        .iter()
        .map(|item| {
            let text = item.filled();
            let wanted = StringMatch::from_policy_value(&text);
            literal_star(item, &wanted);
            wanted
        })
        .collect()
}

/// A `*` that is not the first or last character is no wildcard.
fn literal_star(item: &Field<'_>, wanted: &StringMatch) {
    let (StringMatch::Exact(rest) | StringMatch::Prefix(rest) | StringMatch::Suffix(rest)) = wanted else { return };
    if rest.contains('*') {
        item.warn(
            codes::MATCH,
            "only one `*`, at the beginning or the end, is a wildcard: the other is taken literally",
        );
    }
}

fn account(item: &Field<'_>, namespace: &str) -> String {
    let text = item.filled();
    let (space, name) = text.split_once('/').unwrap_or((namespace, &text));
    if let Err(why) = names::dns_label(space).and_then(|()| names::object_name(name))
        && !text.is_empty()
    {
        item.error(codes::SERVICE_ACCOUNT, format!("service account `{text}`: a part {why}"))
            .help("write NAME or NAMESPACE/NAME, without wildcards");
    }
    format!("{space}/{name}")
}

fn port_text(item: &Field<'_>) -> Option<u16> {
    let text = item.text();
    let port = text.parse::<u16>().ok().filter(|port| *port > 0);
    if port.is_none() {
        item.error(codes::RANGE, format!("`{text}` is no port (1 to 65535)"));
    }
    port
}

fn path(item: &Field<'_>) -> PathMatch {
    let text = item.filled();
    if !text.contains(['{', '}']) {
        let wanted = StringMatch::from_policy_value(&text);
        literal_star(item, &wanted);
        return PathMatch::Text(wanted);
    }
    if let Err(why) = template(&text) {
        item.error(codes::PATH_TEMPLATE, why)
            .help("write {*} for one segment, or {**} as the last wildcard for any number of them");
    }
    PathMatch::Template(text)
}

/// Checks a path template.
fn template(text: &str) -> Result<(), String> {
    if !text.starts_with('/') {
        return Err(format!("the path template `{text}` must begin with `/`"));
    }
    let mut over = false;
    for segment in text.split('/').skip(1) {
        match segment {
            "{*}" | "{**}" if over => return Err("nothing variable may follow `{**}`".to_owned()),
            "{*}" => {}
            "{**}" => over = true,
            _ if segment.contains('*') && !segment.contains('{') => {
                return Err(format!("`*` and a template exclude each other in `{text}`"));
            }
            _ if segment.contains(['{', '}']) => {
                return Err(format!("`{segment}` is neither a text nor {{*}} nor {{**}}"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn condition(item: &Field<'_>) -> Option<Condition> {
    let object = item.object();
    let (values, not_values) = (object.get("values"), object.get("notValues"));
    let texts = |field: &Option<Field<'_>>| field.as_ref().map(Field::filled_texts).unwrap_or_default();
    let condition = object.need("key").and_then(|key| {
        let attribute = attribute(&key)?;
        for item in [&values, &not_values].into_iter().flatten().flat_map(Field::items) {
            check_value(&attribute, &item);
        }
        Some(Condition { key: attribute, values: texts(&values), not_values: texts(&not_values) })
    });
    if values.iter().chain(&not_values).all(|field| field.items().is_empty()) {
        item.error(codes::RULE, "the condition has neither `values` nor `notValues`");
    }
    condition
}

fn attribute(field: &Field<'_>) -> Option<Attribute> {
    let key = field.filled();
    let (name, inner) = match key.split_once('[') {
        Some((name, rest)) => (name, rest.strip_suffix(']')),
        None => (key.as_str(), None),
    };
    let plain = match name {
        "source.ip" => Some(Attribute::SourceIp),
        "remote.ip" => Some(Attribute::RemoteIp),
        "source.namespace" => Some(Attribute::SourceNamespace),
        "source.principal" => Some(Attribute::SourcePrincipal),
        "source.serviceAccount" => Some(Attribute::SourceServiceAccount),
        "destination.ip" => Some(Attribute::DestinationIp),
        "destination.port" => Some(Attribute::DestinationPort),
        "connection.sni" => Some(Attribute::ConnectionSni),
        "request.auth.principal" => Some(Attribute::RequestPrincipal),
        "request.auth.audiences" => Some(Attribute::RequestAudiences),
        "request.auth.presenter" => Some(Attribute::RequestPresenter),
        _ => None,
    };
    if let (Some(attribute), false) = (plain, key.contains('[')) {
        return Some(attribute);
    }
    if name == "request.headers" {
        let header = inner.filter(|header| names::header(header).is_ok());
        if header.is_none() {
            field
                .error(codes::CONDITION_KEY, format!("`{key}` does not name a header"))
                .help("write request.headers[NAME]");
        }
        return header.map(|header| Attribute::RequestHeader(header.to_ascii_lowercase()));
    }
    if name == "request.auth.claims" {
        let path = claim_path(&key);
        if path.is_none() {
            field
                .error(codes::CONDITION_KEY, format!("`{key}` does not name a claim"))
                .help("write request.auth.claims[NAME], or request.auth.claims[OUTER][INNER] for a nested one");
        }
        return path.map(Attribute::RequestClaims);
    }
    if name.starts_with("experimental.envoy.filters.") {
        let why = "attributes of other filters are not read";
        field.error(codes::UNSUPPORTED_FIELD, format!("the condition key `{key}` is not supported yet: {why}"));
        return None;
    }
    let known = [
        "request.headers",
        "source.ip",
        "remote.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "destination.ip",
        "destination.port",
        "connection.sni",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.claims",
    ];
    let finding = field.error(codes::CONDITION_KEY, format!("the condition key `{key}` is not known"));
    match names::nearest(&key, known.into_iter()) {
        Some(near) => finding.help(format!("did you mean {near}?")),
        None => finding.help(format!("known: {}", known.join(", "))),
    };
    None
}

/// The names in `request.auth.claims[A][B]`.
fn claim_path(key: &str) -> Option<Vec<String>> {
    let rest = key.strip_prefix("request.auth.claims")?.strip_prefix('[')?.strip_suffix(']')?;
    let path: Vec<String> = rest.split("][").map(str::to_owned).collect();
    let named = |name: &String| !name.is_empty() && !name.contains(['[', ']']);
    path.iter().all(named).then_some(path)
}

fn check_value(attribute: &Attribute, item: &Field<'_>) {
    match attribute {
        Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => {
            item.ip_range();
        }
        Attribute::DestinationPort => {
            port_text(item);
        }
        _ => {}
    }
}
