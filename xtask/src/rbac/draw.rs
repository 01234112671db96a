//! Random worlds. The pools are small, so that rules and requests meet often, and hold what is known to be delicate:
//! letter case, several values of one header, empty values, encoded slashes, numbers that are almost numbers.

use std::net::{IpAddr, SocketAddr};

use engine::Dice;
use serde_json::{Value, json};

/// Filters, and who asks what.
#[derive(Debug)]
pub(super) struct World {
    /// The rules of each filter, as Envoy's API writes them.
    filters: Vec<Value>,
    /// Callers with their requests.
    pub(super) callers: Vec<Caller>,
}

/// One connection.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Where it comes from, as its PROXY header says.
    pub(super) source: SocketAddr,
    /// Where it goes.
    pub(super) destination: SocketAddr,
    /// Mutual TLS with this identity and server name.
    pub(super) tls: Option<(String, String)>,
    /// What it asks.
    pub(super) requests: Vec<Asked>,
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) authority: String,
    pub(super) headers: Vec<(&'static str, &'static str)>,
}

impl World {
    /// All requests, caller by caller.
    pub(super) fn requests(&self) -> impl Iterator<Item = &Asked> {
        self.callers.iter().flat_map(|caller| &caller.requests)
    }

    /// The rules of a filter.
    pub(super) fn rules(&self, filter: usize) -> &Value {
        self.filters.get(filter).unwrap_or(&Value::Null)
    }

    /// The filters of the manager; each writes its verdict under `fN_`.
    pub(super) fn http_filters(&self) -> Vec<Value> {
        let filters = self.filters.iter().enumerate().map(|(number, rules)| {
            json!({"name": format!("rbac-{number}"), "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                "shadow_rules": rules,
                "shadow_rules_stat_prefix": format!("f{number}_"),
            }})
        });
        let router = json!({"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        }});
        filters.chain([router]).collect()
    }

    /// How many filters there are.
    pub(super) fn filters(&self) -> usize {
        self.filters.len()
    }
}

const PATHS: &[&str] = &[
    "/",
    "/a",
    "/A",
    "/a/",
    "/a/b",
    "/a/b/c",
    "/ab",
    "/admin",
    "/admin?x=1",
    "/a%2Fb",
    "/a%2fb",
    "/a//b",
    "/a/../b",
    "/%61",
    "/a?b=/admin",
    "/a;b",
    "/a.b",
    "/x/1/y",
    "/x/22/y?z",
    "/a%20b",
    "/?",
    "/a|b",
];
const METHODS: &[&str] = &["GET", "POST", "PUT", "OPTIONS", "DELETE", "get", "FOO"];
const HOSTS: &[&str] = &["a.test", "A.TEST", "b.test", "b.test:8080", "c.a.test", "10.0.0.1"];
const NAMES: &[&str] = &["x-a", "x-b", "x-c", "x_a"];
const VALUES: &[&str] =
    &["", "1", "22", "-5", "+5", "abc", "ABC", "a,b", "abc def", "a", "b", "0x1", "9223372036854775808", "1.5", "é"];
const TEXTS: &[&str] = &[
    "a",
    "b",
    "abc",
    "ABC",
    "1",
    "22",
    "/a",
    "/admin",
    "/a/b",
    "test",
    "a.test",
    "GET",
    "POST",
    "sa/web",
    "spiffe://cluster.local/ns/shop/sa/web",
    "a,b",
];
const PATTERNS: &[&str] = &[
    "a",
    "a.*",
    ".*b",
    "[a-c]+",
    "(?i)abc",
    "1|22",
    "^a$",
    "\\d+",
    "/a(/.*)?",
    "/x/[0-9]+/y",
    "spiffe://[^/]+/ns/shop/sa/.*",
    ".*",
    "GET|POST",
    "a.c",
    ".*\\.test",
];
const TEMPLATES: &[&str] = &["/a", "/a/*", "/a/**", "/{one}", "/x/{n}/y", "/{all=**}", "/x/*/y"];
const RANGES: &[(&str, u32)] = &[
    ("10.0.0.0", 8),
    ("10.1.0.0", 16),
    ("10.1.2.3", 32),
    ("0.0.0.0", 0),
    ("192.0.2.0", 24),
    ("2001:db8::", 32),
    ("127.0.0.0", 8),
    ("10.1.2.0", 31),
];
const SOURCES: &[&str] = &["10.1.2.3", "10.1.2.4", "10.2.0.1", "192.0.2.9", "198.51.100.1", "2001:db8::7"];
const PORTS: &[u16] = &[80, 8080, 443, 9000];
const IDENTITIES: &[&str] = &[
    "spiffe://cluster.local/ns/shop/sa/web",
    "spiffe://cluster.local/ns/shop/sa/cart",
    "spiffe://cluster.local/ns/bank/sa/web",
    "spiffe://other.test/ns/shop/sa/web",
];
const SERVER_NAMES: &[&str] = &["a.test", "b.test", "c.a.test"];

fn one<T: Copy>(dice: &mut Dice, all: &[T]) -> T {
    let at = usize::try_from(dice.below(all.len() as u64)).unwrap_or(0);
    all[at]
}

fn chance(dice: &mut Dice, of: u64) -> bool {
    dice.below(of) == 0
}

fn count(dice: &mut Dice, most: u64) -> u64 {
    1 + dice.below(most)
}

/// A random world.
pub(super) fn world(dice: &mut Dice, filters: usize, callers: usize, requests: usize) -> World {
    World {
        filters: (0..filters).map(|_| rules(dice)).collect(),
        callers: (0..callers).map(|_| caller(dice, requests)).collect(),
    }
}

fn caller(dice: &mut Dice, requests: usize) -> Caller {
    let address: IpAddr = one(dice, SOURCES).parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
    let destination: IpAddr =
        if address.is_ipv6() { [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into() } else { [10, 1, 2, 1].into() };
    Caller {
        source: SocketAddr::new(address, 40_000),
        destination: SocketAddr::new(destination, one(dice, PORTS)),
        tls: chance(dice, 2).then(|| (one(dice, IDENTITIES).to_owned(), one(dice, SERVER_NAMES).to_owned())),
        requests: (0..requests).map(|_| asked(dice)).collect(),
    }
}

fn asked(dice: &mut Dice) -> Asked {
    Asked {
        method: one(dice, METHODS).to_owned(),
        path: one(dice, PATHS).to_owned(),
        authority: one(dice, HOSTS).to_owned(),
        headers: (0..dice.below(5)).map(|_| (one(dice, NAMES), one(dice, VALUES))).collect(),
    }
}

fn rules(dice: &mut Dice) -> Value {
    let policies: serde_json::Map<_, _> = (0..count(dice, 4))
        .map(|number| {
            let permissions: Vec<_> = (0..count(dice, 2)).map(|_| permission(dice, 3)).collect();
            let principals: Vec<_> = (0..count(dice, 2)).map(|_| principal(dice, 3)).collect();
            (format!("p{}-{number}", dice.below(9)), json!({"permissions": permissions, "principals": principals}))
        })
        .collect();
    json!({"action": if chance(dice, 2) { "ALLOW" } else { "DENY" }, "policies": policies})
}

fn permission(dice: &mut Dice, depth: u64) -> Value {
    let kinds = if depth > 0 { 12 } else { 9 };
    match dice.below(kinds) {
        0 => json!({"any": true}),
        1..=3 => json!({"header": header(dice)}),
        4 => json!({"url_path": {"path": string(dice)}}),
        5 => json!({"uri_template": {"name": "template", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
            "path_template": one(dice, TEMPLATES)}}}),
        6 => json!({"destination_ip": range(dice)}),
        7 if chance(dice, 2) => json!({"destination_port": one(dice, PORTS)}),
        7 => {
            json!({"destination_port_range": {"start": one(dice, &[1, 80, 443]), "end": one(dice, &[444, 8080, 9001])}})
        }
        8 => json!({"requested_server_name": string(dice)}),
        9 => json!({"and_rules": {"rules": several(dice, depth, permission)}}),
        10 => json!({"or_rules": {"rules": several(dice, depth, permission)}}),
        _ => json!({"not_rule": permission(dice, depth - 1)}),
    }
}

fn principal(dice: &mut Dice, depth: u64) -> Value {
    let kinds = if depth > 0 { 12 } else { 9 };
    match dice.below(kinds) {
        0 => json!({"any": true}),
        1 if chance(dice, 3) => json!({"authenticated": {}}),
        1..=3 => json!({"authenticated": {"principal_name": identity(dice)}}),
        4 => json!({"source_ip": range(dice)}),
        5 => json!({"direct_remote_ip": range(dice)}),
        6 => json!({"remote_ip": range(dice)}),
        7 => json!({"header": header(dice)}),
        8 => json!({"url_path": {"path": string(dice)}}),
        9 => json!({"and_ids": {"ids": several(dice, depth, principal)}}),
        10 => json!({"or_ids": {"ids": several(dice, depth, principal)}}),
        _ => json!({"not_id": principal(dice, depth - 1)}),
    }
}

fn several(dice: &mut Dice, depth: u64, draw: fn(&mut Dice, u64) -> Value) -> Vec<Value> {
    (0..count(dice, 3)).map(|_| draw(dice, depth - 1)).collect()
}

fn identity(dice: &mut Dice) -> Value {
    match dice.below(4) {
        0 => json!({"exact": one(dice, IDENTITIES)}),
        1 => json!({"prefix": one(dice, &["spiffe://cluster.local/ns/shop/", "spiffe://cluster.local/", "spiffe"])}),
        2 => json!({"suffix": one(dice, &["/sa/web", "/sa/cart", "web"])}),
        _ => string(dice),
    }
}

fn string(dice: &mut Dice) -> Value {
    let text = one(dice, TEXTS);
    let mut rule = match dice.below(5) {
        0 => json!({"exact": text}),
        1 => json!({"prefix": text}),
        2 => json!({"suffix": text}),
        3 => json!({"contains": text}),
        _ => return json!({"safe_regex": {"regex": one(dice, PATTERNS)}}),
    };
    if chance(dice, 3) {
        rule["ignore_case"] = json!(true);
    }
    rule
}

fn header(dice: &mut Dice) -> Value {
    let name = match dice.below(8) {
        0 => ":method",
        1 => ":path",
        2 => ":authority",
        3 => "host",
        _ => one(dice, NAMES),
    };
    let mut rule = match dice.below(6) {
        0 => json!({"present_match": !chance(dice, 3)}),
        1 => json!({"range_match": {"start": one(dice, &[-10, 0, 1, 22]), "end": one(dice, &[1, 2, 23, 100])}}),
        2 => json!({"string_match": {"exact": one(dice, METHODS)}}),
        _ => json!({"string_match": string(dice)}),
    };
    rule["name"] = json!(name);
    if chance(dice, 3) {
        rule["invert_match"] = json!(true);
    }
    if chance(dice, 3) {
        rule["treat_missing_header_as_empty"] = json!(true);
    }
    rule
}

fn range(dice: &mut Dice) -> Value {
    let (address, length) = one(dice, RANGES);
    json!({"address_prefix": address, "prefix_len": length})
}
