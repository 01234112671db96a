//! MeshConfig.

use std::time::Duration;

use model::MeshConfig;
use model::mesh::{AccessLogConfig, PathNormalization};

use super::{extension_providers, locality_balancing, retries};
use crate::codes;
use crate::field::{Field, Object};

/// Settings of other parts of an Istio installation: harmless to leave out, so only noted.
const NO_EFFECT: &[&str] = &[
    "defaultConfig",
    "ingressService",
    "ingressControllerMode",
    "ingressClass",
    "ingressSelector",
    "proxyListenPort",
    "proxyInboundListenPort",
    "proxyHttpPort",
    "enableTracing",
    "protocolDetectionTimeout",
    "dnsRefreshRate",
    "configSources",
    "enablePrometheusMerge",
    "verifyCertificateAtClient",
    "h2UpgradePolicy",
    "tcpKeepalive",
    "inboundClusterStatName",
    "outboundClusterStatName",
    "hboneIdleTimeout",
    "enableEnvoyAccessLogService",
    "disableEnvoyListenerLog",
    "discoverySelectors",
    "defaultServiceExportTo",
    "defaultVirtualServiceExportTo",
    "defaultDestinationRuleExportTo",
    "serviceSettings",
    "certificates",
    "thriftConfig",
];

/// Reads mesh-wide settings.
pub(crate) fn read(object: &Object<'_>) -> MeshConfig {
    let defaults = MeshConfig::default();
    object.refuse("caCertificates", "the mesh trusts its own certificate authority alone");
    for field in object.given(NO_EFFECT) {
        field.warn(codes::NO_EFFECT, format!("`{}` has no effect", field.name()));
    }
    object.ignore(&["defaultProviders"]);
    let text = |name| object.get(name).map(|field| field.filled());
    let outbound = object
        .get("outboundTrafficPolicy")
        .and_then(|policy| policy.object().get("mode")?.word(&[("ALLOW_ANY", true), ("REGISTRY_ONLY", false)]));
    MeshConfig {
        trust_domain: object.get("trustDomain").map_or(defaults.trust_domain, |field| trust_domain(&field)),
        trust_domain_aliases: object.get("trustDomainAliases").map(|field| field.filled_texts()).unwrap_or_default(),
        root_namespace: text("rootNamespace").unwrap_or(defaults.root_namespace),
        cluster_domain: text("clusterDomain").unwrap_or(defaults.cluster_domain),
        outbound_allow_any: outbound.unwrap_or(true),
        connect_timeout: object
            .get("connectTimeout")
            .map_or(Duration::from_secs(10), |field| field.positive_duration()),
        auto_mtls: object.get("enableAutoMtls").is_none_or(|field| field.boolean()),
        path_normalization: object
            .get("pathNormalization")
            .and_then(|field| path_normalization(&field))
            .unwrap_or(PathNormalization::Base),
        locality: object.get("localityLbSetting").map(|field| locality_balancing::read(&field)).unwrap_or_default(),
        default_retry: object.get("defaultHttpRetryPolicy").map(|field| retries::read(&field)),
        access_log: access_log(object),
        authorizers: object
            .get("extensionProviders")
            .map(|field| extension_providers::read(&field))
            .unwrap_or_default(),
    }
}

fn trust_domain(field: &Field<'_>) -> String {
    let text = field.filled();
    if model::SpiffeId::new(&text, "a", "b").is_err() {
        field
            .error(codes::NAME, format!("`{text}` is no trust domain"))
            .help("a trust domain holds a-z, 0-9, `.`, `-` and `_`, as cluster.local");
    }
    text
}

fn path_normalization(field: &Field<'_>) -> Option<PathNormalization> {
    field.object().get("normalization")?.word(&[
        ("DEFAULT", PathNormalization::Base),
        ("NONE", PathNormalization::None),
        ("BASE", PathNormalization::Base),
        ("MERGE_SLASHES", PathNormalization::MergeSlashes),
        ("DECODE_AND_MERGE_SLASHES", PathNormalization::DecodeAndMergeSlashes),
    ])
}

fn access_log(object: &Object<'_>) -> AccessLogConfig {
    let text = |name| object.get(name).map(|field| field.text()).filter(|text: &String| !text.is_empty());
    let json = object.get("accessLogEncoding").and_then(|field| field.word(&[("TEXT", false), ("JSON", true)]));
    AccessLogConfig { file: text("accessLogFile"), json: json.unwrap_or(false), format: text("accessLogFormat") }
}
