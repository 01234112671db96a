//! TLS contexts: mesh mTLS on both sides, and TLS to the outside as a DestinationRule asks for it.

use std::collections::BTreeSet;

use model::destination::{ClientTls, TlsMode};
use model::service::Protocol;
use proto::envoy::config::core::v3::{
    ApiConfigSource, ApiVersion, ConfigSource, DataSource, GrpcService, TransportSocket, api_config_source,
    config_source::ConfigSourceSpecifier, data_source::Specifier, grpc_service, transport_socket,
};
use proto::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    TlsCertificate, TlsParameters, UpstreamTlsContext,
    certificate_validation_context::TrustChainVerification,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    subject_alt_name_matcher::SanType,
    tls_parameters::TlsProtocol,
};
use proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

use super::{Secrets, wire};

/// Protocol names by which a receiving proxy knows mesh TLS from an application's own (Istio's).
pub(crate) const MESH_ALPN: [&str; 5] =
    ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// Those that say HTTP.
pub(crate) const MESH_HTTP_ALPN: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// Those that say nothing of what is inside.
pub(crate) const MESH_TCP_ALPN: [&str; 2] = ["istio-peer-exchange", "istio"];

/// The protocol a cluster speaks, as far as it is known before a request comes.
pub(crate) fn client_alpn(protocol: Protocol, upgraded: bool) -> Vec<String> {
    let names: &[&str] = match protocol {
        Protocol::Http2 | Protocol::Grpc => &["istio-h2", "istio", "h2"],
        Protocol::Http if upgraded => &["istio-h2", "istio", "h2"],
        Protocol::Http => &["istio-http/1.1", "istio", "http/1.1"],
        Protocol::Tls | Protocol::Https | Protocol::Tcp | Protocol::Auto => &["istio"],
    };
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Mesh mTLS towards a service: own identity, the mesh's trust, one of `server_names`.
pub(crate) fn mesh_client(
    secrets: &Secrets,
    sni: String,
    server_names: &BTreeSet<String>,
    alpn: Vec<String>,
) -> TransportSocket {
    let names = server_names.iter().map(|name| uri_san(MatchPattern::Exact(name.clone()))).collect();
    upstream(UpstreamTlsContext {
        common_tls_context: Some(mesh_context(secrets, names, alpn)),
        sni,
        ..UpstreamTlsContext::default()
    })
}

/// Mesh mTLS of inbound connections: any identity of the mesh's trust domains, and always one.
pub(crate) fn mesh_server<'d>(
    secrets: &Secrets,
    trust_domains: impl Iterator<Item = &'d str>,
    alpn: &[&str],
) -> TransportSocket {
    let names = trust_domains.map(|domain| uri_san(MatchPattern::Prefix(format!("spiffe://{domain}/")))).collect();
    let alpn = alpn.iter().map(|name| (*name).to_owned()).collect();
    let context = DownstreamTlsContext {
        common_tls_context: Some(mesh_context(secrets, names, alpn)),
        require_client_certificate: wire::boolean(true),
        ..DownstreamTlsContext::default()
    };
    socket("envoy.transport_sockets.tls", wire::any(&context, &wire::FLAT))
}

/// TLS that a DestinationRule asks for: SIMPLE and MUTUAL with files. Without a CA file the machine's roots are
/// trusted, and without SANs the name in `sni` must be the server's.
pub(crate) fn own_client(tls: &ClientTls, sni: &str, alpn: Vec<String>) -> TransportSocket {
    let certificates = match (&tls.certificate, &tls.private_key, tls.mode) {
        (Some(chain), Some(key), TlsMode::Mutual) => {
            vec![TlsCertificate { certificate_chain: file(chain), private_key: file(key), ..TlsCertificate::default() }]
        }
        _ => Vec::new(),
    };
    let context = CommonTlsContext {
        tls_params: Some(parameters()),
        tls_certificates: certificates,
        alpn_protocols: alpn,
        validation_context_type: Some(ValidationContextType::ValidationContext(own_validation(tls, sni))),
        ..CommonTlsContext::default()
    };
    upstream(UpstreamTlsContext {
        common_tls_context: Some(context),
        sni: sni.to_owned(),
        ..UpstreamTlsContext::default()
    })
}

fn own_validation(tls: &ClientTls, sni: &str) -> CertificateValidationContext {
    if tls.insecure {
        return CertificateValidationContext {
            trust_chain_verification: TrustChainVerification::AcceptUntrusted.into(),
            ..CertificateValidationContext::default()
        };
    }
    let listed = tls.subject_alt_names.iter().map(String::as_str);
    let named = tls.subject_alt_names.is_empty().then_some(sni).filter(|sni| !sni.is_empty());
    let names = listed.chain(named).map(|name| {
        let kind = if name.contains("://") { SanType::Uri } else { SanType::Dns };
        san(kind, MatchPattern::Exact(name.to_owned()))
    });
    let roots = "/etc/ssl/certs/ca-certificates.crt";
    CertificateValidationContext {
        trusted_ca: file(tls.ca.as_deref().unwrap_or(roots)),
        match_typed_subject_alt_names: names.collect(),
        ..CertificateValidationContext::default()
    }
}

/// No TLS.
pub(crate) fn plaintext() -> TransportSocket {
    socket("envoy.transport_sockets.raw_buffer", wire::any(&RawBuffer {}, &wire::FLAT))
}

fn mesh_context(secrets: &Secrets, names: Vec<SubjectAltNameMatcher>, alpn: Vec<String>) -> CommonTlsContext {
    let mut context =
        CommonTlsContext { tls_params: Some(parameters()), alpn_protocols: alpn, ..CommonTlsContext::default() };
    let mut validation = CertificateValidationContext {
        match_typed_subject_alt_names: names,
        ..CertificateValidationContext::default()
    };
    match secrets {
        Secrets::Sds { cluster } => {
            context.tls_certificate_sds_secret_configs = vec![sds("default", cluster)];
            let combined = CombinedCertificateValidationContext {
                default_validation_context: Some(validation),
                validation_context_sds_secret_config: Some(sds("ROOTCA", cluster)),
                ..CombinedCertificateValidationContext::default()
            };
            context.validation_context_type = Some(ValidationContextType::CombinedValidationContext(combined));
        }
        Secrets::Files { directory } => {
            let path = |name: &str| file(&format!("{}/{name}", directory.trim_end_matches('/')));
            context.tls_certificates = vec![TlsCertificate {
                certificate_chain: path("cert-chain.pem"),
                private_key: path("key.pem"),
                ..TlsCertificate::default()
            }];
            validation.trusted_ca = path("root-cert.pem");
            context.validation_context_type = Some(ValidationContextType::ValidationContext(validation));
        }
    }
    context
}

fn parameters() -> TlsParameters {
    TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
        tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
        ..TlsParameters::default()
    }
}

fn sds(name: &str, cluster: &str) -> SdsSecretConfig {
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ConfigSource {
            resource_api_version: ApiVersion::V3.into(),
            // The agent is on this machine; a listener waits for its key rather than failing.
            initial_fetch_timeout: wire::seconds(0),
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(grpc_source(cluster, false))),
            ..ConfigSource::default()
        }),
    }
}

/// An xDS server behind a cluster.
pub(crate) fn grpc_source(cluster: &str, delta: bool) -> ApiConfigSource {
    use api_config_source::ApiType;
    let service = GrpcService {
        target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(grpc_service::EnvoyGrpc {
            cluster_name: cluster.to_owned(),
            ..grpc_service::EnvoyGrpc::default()
        })),
        ..GrpcService::default()
    };
    ApiConfigSource {
        api_type: if delta { ApiType::DeltaGrpc } else { ApiType::Grpc }.into(),
        transport_api_version: ApiVersion::V3.into(),
        grpc_services: vec![service],
        set_node_on_first_message_only: true,
        ..ApiConfigSource::default()
    }
}

fn uri_san(pattern: MatchPattern) -> SubjectAltNameMatcher {
    san(SanType::Uri, pattern)
}

fn san(kind: SanType, pattern: MatchPattern) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: kind.into(),
        matcher: Some(StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }),
        ..SubjectAltNameMatcher::default()
    }
}

fn file(path: &str) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::Filename(path.to_owned())), ..DataSource::default() })
}

fn upstream(context: UpstreamTlsContext) -> TransportSocket {
    socket("envoy.transport_sockets.tls", wire::any(&context, &wire::FLAT))
}

fn socket(name: &str, config: proto::google::protobuf::Any) -> TransportSocket {
    TransportSocket { name: name.to_owned(), config_type: Some(transport_socket::ConfigType::TypedConfig(config)) }
}
