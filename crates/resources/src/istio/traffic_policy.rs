//! `trafficPolicy` of a DestinationRule and its subsets.

use std::collections::HashMap;

use model::destination::{
    ClientTls, ConnectionPool, OutlierDetection, RetryBudget, TcpKeepalive, TlsMode, TrafficPolicy,
};

use super::load_balancer;
use crate::codes;
use crate::field::{Field, Object};

const PARTS: [&str; 4] = ["loadBalancer", "connectionPool", "outlierDetection", "tls"];
/// Envoy's defaults of a retry budget: thousandths of a per cent, and retries that are always allowed.
const BUDGET: (u32, u32) = (20_000, 3);

/// Reads a traffic policy.
pub(super) fn read(field: &Field<'_>) -> TrafficPolicy {
    let object = field.object();
    if object.is_empty() {
        field.error(codes::EMPTY_POLICY, "the traffic policy is empty").help("remove it, or say something in it");
    }
    object.refuse("tunnel", "traffic cannot be tunnelled through a proxy");
    object.refuse("proxyProtocol", "the PROXY protocol is not sent to destinations");
    let mut policy = parts(&object);
    policy.retry_budget = object.get("retryBudget").map(|field| {
        let budget = field.object();
        let percent = budget.get("percent").map(|field| (field.decimal(0.0, 100.0) * 1000.0).round() as u32);
        let minimum = budget.get("minRetryConcurrency").map(|field| field.count());
        RetryBudget { share: percent.unwrap_or(BUDGET.0), minimum: minimum.unwrap_or(BUDGET.1) }
    });
    let mut seen = HashMap::new();
    for item in object.get("portLevelSettings").map(|field| field.items()).unwrap_or_default() {
        let settings = item.object();
        let number = settings.need("port").and_then(|port| {
            let number = port.object().need("number")?;
            let value = number.port();
            if let Some(first) = seen.insert(value, number.span()) {
                number.error(codes::PORT_TWICE, format!("port {value} stands twice")).also(first, "first here");
            }
            Some(value)
        });
        if settings.given(&PARTS).is_empty() {
            item.error(codes::EMPTY_POLICY, "the settings of this port are empty");
        }
        policy.ports.push((number.unwrap_or_default(), parts(&settings)));
    }
    policy
}

fn parts(object: &Object<'_>) -> TrafficPolicy {
    let policy = TrafficPolicy {
        load_balancer: object.get("loadBalancer").and_then(|field| load_balancer::read(&field)),
        connection_pool: object.get("connectionPool").map(|field| connection_pool(&field)),
        outlier: object.get("outlierDetection").map(|field| outlier(&field)),
        tls: object.get("tls").map(|field| tls(&field)),
        retry_budget: None,
        ports: Vec::new(),
    };
    let locality = policy.load_balancer.as_ref().and_then(|balancer| balancer.locality.as_ref());
    let fails_over = locality.is_some_and(|locality| {
        !(locality.off || locality.failover.is_empty() && locality.failover_priority.is_empty())
    });
    if let (true, None, Some(field)) = (fails_over, &policy.outlier, object.get("loadBalancer")) {
        field
            .warn(codes::NO_EFFECT, "failover has no effect without `outlierDetection`: nobody would be found to fail")
            .help("add outlierDetection beside it");
    }
    policy
}

fn connection_pool(field: &Field<'_>) -> ConnectionPool {
    let object = field.object();
    if object.given(&["tcp", "http"]).is_empty() {
        field.error(codes::EMPTY_POLICY, "the connection pool is empty").help("give tcp or http settings");
    }
    let mut pool = ConnectionPool::default();
    if let Some(tcp) = object.get("tcp") {
        tcp_pool(&tcp.object(), &mut pool);
    }
    if let Some(http) = object.get("http") {
        http_pool(&http.object(), &mut pool);
    }
    pool
}

fn tcp_pool(tcp: &Object<'_>, pool: &mut ConnectionPool) {
    let duration = |name| tcp.get(name).map(|field| field.positive_duration());
    pool.max_connections = tcp.get("maxConnections").map(|field| field.count());
    pool.connect_timeout = duration("connectTimeout");
    pool.tcp_idle_timeout = duration("idleTimeout");
    pool.max_connection_duration = duration("maxConnectionDuration");
    pool.keepalive = tcp.get("tcpKeepalive").map(|field| {
        let keepalive = field.object();
        TcpKeepalive {
            probes: keepalive.get("probes").map(|field| field.count()),
            time: keepalive.get("time").map(|field| field.positive_duration()),
            interval: keepalive.get("interval").map(|field| field.positive_duration()),
        }
    });
}

fn http_pool(http: &Object<'_>, pool: &mut ConnectionPool) {
    let count = |name| http.get(name).map(|field| field.count());
    pool.max_pending = count("http1MaxPendingRequests");
    pool.max_requests = count("http2MaxRequests");
    pool.max_requests_per_connection = count("maxRequestsPerConnection");
    pool.max_retries = count("maxRetries");
    pool.max_concurrent_streams = count("maxConcurrentStreams");
    pool.http_idle_timeout = http.get("idleTimeout").map(|field| field.positive_duration());
    let words = [("DEFAULT", None), ("DO_NOT_UPGRADE", Some(false)), ("UPGRADE", Some(true))];
    let upgrade = http.get("h2UpgradePolicy");
    pool.h2_upgrade = upgrade.as_ref().and_then(|field| field.word(&words)).flatten();
    let same = http.get("useClientProtocol");
    pool.use_client_protocol = same.as_ref().map(Field::boolean);
    if let (Some(true), Some(true), Some(upgrade), Some(same)) =
        (pool.h2_upgrade, pool.use_client_protocol, upgrade, same)
    {
        same.error_at_key(codes::EXCLUSIVE, "`useClientProtocol` and `h2UpgradePolicy: UPGRADE` exclude each other")
            .also(upgrade.key_span(), "given here as well");
    }
    http.refuse("http2KeepAlive", "use tcp.tcpKeepalive");
}

fn outlier(field: &Field<'_>) -> OutlierDetection {
    let object = field.object();
    let count = |name| object.get(name).map(|field| field.count());
    let percent = |name| object.get(name).map(|field| u32::try_from(field.integer(0, 100)).unwrap_or_default());
    let duration = |name| object.get(name).map(|field| field.positive_duration());
    let split = object.get("splitExternalLocalOriginErrors").is_some_and(|field| field.boolean());
    let local = object.get("consecutiveLocalOriginFailures");
    if let (Some(local), false) = (&local, split) {
        local
            .error_at_key(codes::OUTLIER, "local failures are counted only with `splitExternalLocalOriginErrors: true`")
            .help("add splitExternalLocalOriginErrors: true beside it");
    }
    let old = object.get("consecutiveErrors").map(|field| {
        field
            .warn(codes::DEPRECATED, "`consecutiveErrors` is deprecated")
            .help("write consecutiveGatewayErrors (502, 503, 504) or consecutive5xxErrors");
        field.count()
    });
    OutlierDetection {
        consecutive_5xx: count("consecutive5xxErrors"),
        consecutive_gateway_errors: count("consecutiveGatewayErrors").or(old),
        consecutive_local_origin: local.map(|field| field.count()),
        split_external_local_origin: split,
        interval: duration("interval"),
        base_ejection_time: duration("baseEjectionTime"),
        max_ejection_percent: percent("maxEjectionPercent"),
        min_health_percent: percent("minHealthPercent"),
    }
}

fn tls(field: &Field<'_>) -> ClientTls {
    let object = field.object();
    let words = [
        ("DISABLE", TlsMode::Disable),
        ("SIMPLE", TlsMode::Simple),
        ("MUTUAL", TlsMode::Mutual),
        ("ISTIO_MUTUAL", TlsMode::IstioMutual),
    ];
    let mode = object.get("mode").and_then(|mode| mode.word(&words)).unwrap_or(TlsMode::Disable);
    object.refuse(
        "credentialName",
        "secrets of Kubernetes are not read; name files with clientCertificate and privateKey",
    );
    object.refuse("caCrl", "revocation lists are not read");
    let insecure = object.get("insecureSkipVerify").is_some_and(|field| field.boolean());
    if insecure {
        for useless in object.given(&["caCertificates", "subjectAltNames"]) {
            useless.error_at_key(
                codes::CLIENT_TLS,
                format!("`insecureSkipVerify` and `{}` exclude each other", useless.name()),
            );
        }
    }
    if mode == TlsMode::Mutual && object.get("credentialName").is_none() {
        for name in ["clientCertificate", "privateKey"] {
            if object.get(name).is_none() {
                field.error(codes::CLIENT_TLS, format!("mode MUTUAL needs `{name}`")).help(format!(
                    "add {name}: /path/to/file.pem, or write mode: ISTIO_MUTUAL for the mesh's own identity"
                ));
            }
        }
    }
    let file = |name| object.get(name).map(|field| field.text()).filter(|text| !text.is_empty());
    ClientTls {
        mode,
        certificate: file("clientCertificate"),
        private_key: file("privateKey"),
        ca: file("caCertificates"),
        subject_alt_names: object.get("subjectAltNames").map(|field| field.filled_texts()).unwrap_or_default(),
        sni: file("sni"),
        insecure,
    }
}
