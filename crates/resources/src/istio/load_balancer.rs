//! `loadBalancer` of a traffic policy.

use std::time::Duration;

use model::destination::{BalancerKind, HashOn, HashTable, LoadBalancer, Warmup};

use super::{headers, locality_balancing};
use crate::codes;
use crate::field::{Field, Object};

const HASHES: [&str; 4] = ["httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"];

/// Reads the load balancer; `None` where nothing is said.
pub(super) fn read(field: &Field<'_>) -> Option<LoadBalancer> {
    let object = field.object();
    if let (Some(simple), Some(hash)) = (object.get("simple"), object.get("consistentHash")) {
        hash.error_at_key(codes::BALANCER, "`simple` and `consistentHash` exclude each other")
            .also(simple.key_span(), "given here as well");
    }
    object.refuse("zoneAwareLbSetting", "write localityLbSetting");
    let locality = object.get("localityLbSetting").map(|field| locality_balancing::read(&field));
    object.at_most_one(&["warmup", "warmupDurationSecs"]);
    let old = object.get("warmupDurationSecs").map(|field| {
        field.warn(codes::DEPRECATED, "`warmupDurationSecs` is deprecated").help("write warmup: {duration: ...}");
        Warmup { duration: field.positive_duration(), ..Warmup::LINEAR }
    });
    let warmup = object.get("warmup").map(|field| warmup(&field)).or(old);
    let simple = object.get("simple").and_then(|field| simple(&field));
    let hash = object.get("consistentHash").map(|field| consistent_hash(&field));
    match (hash.or(simple), warmup, locality) {
        (None, None, None) => None,
        (kind, warmup, locality) => {
            Some(LoadBalancer { kind: kind.unwrap_or(BalancerKind::LeastRequest), warmup, locality })
        }
    }
}

fn simple(field: &Field<'_>) -> Option<BalancerKind> {
    let words = [
        ("UNSPECIFIED", 0),
        ("LEAST_REQUEST", 0),
        ("LEAST_CONN", 1),
        ("ROUND_ROBIN", 2),
        ("RANDOM", 3),
        ("PASSTHROUGH", 4),
    ];
    Some(match field.word(&words)? {
        1 => {
            field.warn(codes::DEPRECATED, "`LEAST_CONN` is deprecated").help("write LEAST_REQUEST");
            BalancerKind::LeastRequest
        }
        2 => BalancerKind::RoundRobin,
        3 => BalancerKind::Random,
        4 => BalancerKind::Passthrough,
        _ => BalancerKind::LeastRequest,
    })
}

fn warmup(field: &Field<'_>) -> Warmup {
    /// More would only be a mistake.
    const STEEPEST: f64 = 1000.0;
    let object = field.object();
    let thousandths = |name, low, high, default| {
        let value = object.get(name).map(|field| (field.decimal(low, high) * 1000.0).round() as u32);
        value.unwrap_or(default)
    };
    let none = Warmup::LINEAR;
    Warmup {
        duration: object.need("duration").map(|field| field.positive_duration()).unwrap_or_default(),
        minimum: thousandths("minimumPercent", 0.0, 100.0, none.minimum),
        aggression: thousandths("aggression", 1.0, STEEPEST, none.aggression),
    }
}

fn consistent_hash(field: &Field<'_>) -> BalancerKind {
    let object = field.object();
    object.at_most_one(&HASHES);
    object.at_most_one(&["ringHash", "maglev"]);
    if object.given(&HASHES).is_empty() {
        field
            .error(codes::BALANCER, "`consistentHash` does not say what to hash")
            .help(format!("give one of {}", HASHES.join(", ")));
    }
    let source_ip = object.get("useSourceIp").map(|field| field.boolean());
    let on = if let Some(header) = object.get("httpHeaderName") {
        HashOn::Header(headers::name(&header))
    } else if let Some(query) = object.get("httpQueryParameterName") {
        HashOn::QueryParameter(query.filled())
    } else if let Some(cookie) = object.get("httpCookie") {
        hash_cookie(&cookie)
    } else {
        if source_ip == Some(false) {
            field.error(codes::BALANCER, "`useSourceIp: false` leaves nothing to hash");
        }
        HashOn::SourceIp
    };
    BalancerKind::ConsistentHash { on, table: table(&object) }
}

fn hash_cookie(field: &Field<'_>) -> HashOn {
    let object = field.object();
    let attribute = |field: &Field<'_>| {
        let object = field.object();
        let name = object.need("name").map(|field| field.filled()).unwrap_or_default();
        (name, object.get("value").map(|field| field.text()).unwrap_or_default())
    };
    HashOn::Cookie {
        name: object.need("name").map(|field| field.filled()).unwrap_or_default(),
        path: object.get("path").map(|field| field.text()).unwrap_or_default(),
        ttl: object.get("ttl").map(|field| field.duration(Duration::ZERO)),
        attributes: object
            .get("attributes")
            .map(|field| field.items())
            .unwrap_or_default()
            .iter()
            .map(attribute)
            .collect(),
    }
}

fn table(object: &Object<'_>) -> HashTable {
    const RING: u64 = 1024;
    /// Envoy's limit of a table's size.
    const LARGEST: i64 = 8_388_608;
    let size = |field: Field<'_>, default: u64| {
        let value = field.integer(0, LARGEST);
        u64::try_from(value).ok().filter(|value| *value > 0).unwrap_or(default)
    };
    if let Some(maglev) = object.get("maglev") {
        let maglev = maglev.object();
        let field = maglev.get("tableSize");
        let value = field.clone().map_or(65537, |field| size(field, 65537));
        if let (false, Some(field)) = (is_prime(value), field) {
            field.error(codes::BALANCER, format!("{value} is no prime number")).help("write 65537");
        }
        return HashTable::Maglev { size: value };
    }
    let ring =
        object.get("ringHash").map(|ring| ring.object().get("minimumRingSize").map_or(RING, |field| size(field, RING)));
    let old = object.get("minimumRingSize").map(|field| {
        field
            .warn(codes::DEPRECATED, "`minimumRingSize` is deprecated here")
            .help("write ringHash: {minimumRingSize: ...}");
        size(field, RING)
    });
    HashTable::Ring { minimum: ring.or(old).unwrap_or(RING) }
}

fn is_prime(number: u64) -> bool {
    number > 1 && (2..=number.isqrt()).all(|divisor| !number.is_multiple_of(divisor))
}
