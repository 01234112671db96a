//! TLS contexts and secrets.

use std::path::Path;
use std::sync::Arc;

use prost::Message;
use proto::envoy::config::core::v3 as core;
use proto::envoy::extensions::transport_sockets::tls::v3 as tls;

use super::value::{data_source, string};
use super::{Context, flag, type_name};
use crate::tls::{
    Certificate, CertificateSource, DownstreamTls, SanKind, SanMatcher, Secret, SecretRef, SecretSource, TlsCommon,
    TlsVersion, UpstreamTls, Validation,
};

const DOWNSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const UPSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const RAW: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const SPIFFE: &str = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// Sessions that are kept where nothing is said.
const SESSIONS: u32 = 64;
/// More are not kept whatever is said: each is some kilobytes.
const MOST_SESSIONS: u32 = 4096;

/// A chain's transport socket: TLS, or `Some(None)` for plain bytes.
pub(super) fn downstream(cx: &mut Context<'_>, socket: &core::TransportSocket) -> Option<Option<Arc<DownstreamTls>>> {
    typed(cx, socket, |cx, any| match type_name(any) {
        RAW => Some(None),
        DOWNSTREAM => {
            let message: tls::DownstreamTlsContext = cx.unpack(any)?;
            downstream_context(cx, &message).map(|context| Some(Arc::new(context)))
        }
        other => cx.refuse(format!("the transport socket {other} is not implemented")),
    })
}

/// A cluster's transport socket: TLS, or `Some(None)` for plain bytes.
pub(super) fn upstream(cx: &mut Context<'_>, socket: &core::TransportSocket) -> Option<Option<Arc<UpstreamTls>>> {
    typed(cx, socket, |cx, any| match type_name(any) {
        RAW => Some(None),
        UPSTREAM => {
            let message: tls::UpstreamTlsContext = cx.unpack(any)?;
            upstream_context(cx, &message).map(|context| Some(Arc::new(context)))
        }
        other => cx.refuse(format!("the transport socket {other} is not implemented")),
    })
}

fn typed<T>(
    cx: &mut Context<'_>,
    socket: &core::TransportSocket,
    build: impl FnOnce(&mut Context<'_>, &proto::google::protobuf::Any) -> Option<T>,
) -> Option<T> {
    cx.field("typed_config", |cx| match &socket.config_type {
        Some(core::transport_socket::ConfigType::TypedConfig(any)) => build(cx, any),
        None => cx.refuse("is required"),
    })
}

fn downstream_context(cx: &mut Context<'_>, message: &tls::DownstreamTlsContext) -> Option<DownstreamTls> {
    use tls::downstream_tls_context::SessionTicketKeysType as Tickets;
    let common = cx.required("common_tls_context", message.common_tls_context.as_ref(), common)?;
    if common.certificates.is_empty() {
        return cx.field("common_tls_context", |cx| {
            cx.refuse("a certificate is required: tls_certificates or tls_certificate_sds_secret_configs")
        });
    }
    let stateless_off =
        matches!(message.session_ticket_keys_type, Some(Tickets::DisableStatelessSessionResumption(true)));
    Some(DownstreamTls {
        common,
        require_client_certificate: flag(message.require_client_certificate.as_ref(), false),
        require_sni: flag(message.require_sni.as_ref(), false),
        disable_stateless_resumption: stateless_off,
        disable_stateful_resumption: message.disable_stateful_session_resumption,
    })
}

fn upstream_context(cx: &mut Context<'_>, message: &tls::UpstreamTlsContext) -> Option<UpstreamTls> {
    let common = match &message.common_tls_context {
        Some(message) => cx.field("common_tls_context", |cx| common(cx, message))?,
        None => TlsCommon::default(),
    };
    Some(UpstreamTls {
        common,
        sni: cx.text(&message.sni),
        auto_host_sni: message.auto_host_sni,
        auto_sni: false,
        auto_sni_san_validation: message.auto_sni_san_validation,
        max_session_keys: message.max_session_keys.as_ref().map_or(SESSIONS, |most| most.value.min(MOST_SESSIONS))
            as usize,
    })
}

fn common(cx: &mut Context<'_>, message: &tls::CommonTlsContext) -> Option<TlsCommon> {
    use tls::common_tls_context::ValidationContextType as Kind;
    let mut built = TlsCommon::default();
    if let Some(parameters) = &message.tls_params {
        cx.field("tls_params", |cx| parameters_into(cx, parameters, &mut built));
    }
    built.alpn = message.alpn_protocols.iter().map(|name| cx.share(name)).collect();
    built.certificates = cx.list("tls_certificates", &message.tls_certificates, |cx, message| {
        certificate(cx, message).map(|certificate| CertificateSource::Inline(Arc::new(certificate)))
    });
    let named =
        cx.list("tls_certificate_sds_secret_configs", &message.tls_certificate_sds_secret_configs, |cx, message| {
            secret_ref(cx, message).map(CertificateSource::Secret)
        });
    built.certificates.extend(named);
    built.validation = match &message.validation_context_type {
        None => None,
        Some(Kind::ValidationContext(message)) => Some(cx.field("validation_context", |cx| validation(cx, message))?),
        Some(Kind::ValidationContextSdsSecretConfig(message)) => {
            let secret = cx.field("validation_context_sds_secret_config", |cx| secret_ref(cx, message))?;
            Some(Validation { secret: Some(secret), ..Validation::default() })
        }
        Some(Kind::CombinedValidationContext(message)) => {
            Some(cx.field("combined_validation_context", |cx| combined(cx, message))?)
        }
        #[allow(unreachable_patterns, reason = "the message type grows")]
        Some(_) => return cx.field("validation_context_type", |cx| cx.refuse("is not implemented")),
    };
    Some(built)
}

fn combined(
    cx: &mut Context<'_>,
    message: &tls::common_tls_context::CombinedCertificateValidationContext,
) -> Option<Validation> {
    let built = cx.required("default_validation_context", message.default_validation_context.as_ref(), validation);
    let secret = cx.required(
        "validation_context_sds_secret_config",
        message.validation_context_sds_secret_config.as_ref(),
        secret_ref,
    );
    Some(Validation { secret: Some(secret?), ..built? })
}

fn parameters_into(cx: &mut Context<'_>, message: &tls::TlsParameters, built: &mut TlsCommon) {
    built.min_version = version(cx, "tls_minimum_protocol_version", message.tls_minimum_protocol_version, true);
    built.max_version = version(cx, "tls_maximum_protocol_version", message.tls_maximum_protocol_version, false);
    if built.min_version > built.max_version && built.max_version.is_some() {
        cx.fault("the lowest version is above the highest");
    }
    built.cipher_suites = message.cipher_suites.iter().map(|name| cx.share(name)).collect();
    built.curves = message.ecdh_curves.iter().map(|name| cx.share(name)).collect();
}

/// A floor below TLS 1.2 means 1.2, the lowest there is; a ceiling below it cannot be kept.
fn version(cx: &mut Context<'_>, field: &'static str, number: i32, floor: bool) -> Option<TlsVersion> {
    match number {
        0 => None,
        1 | 2 if floor => None,
        3 => Some(TlsVersion::V1_2),
        4 => Some(TlsVersion::V1_3),
        _ => cx.field(field, |cx| cx.refuse("must be TLSv1_2 or TLSv1_3")),
    }
}

fn certificate(cx: &mut Context<'_>, message: &tls::TlsCertificate) -> Option<Certificate> {
    let chain = cx.required("certificate_chain", message.certificate_chain.as_ref(), data_source);
    let key = cx.required("private_key", message.private_key.as_ref(), data_source);
    let watched_directory = message.watched_directory.as_ref().map(|directory| Path::new(&directory.path).into());
    Some(Certificate { chain: chain?, key: key?, watched_directory })
}

fn secret_ref(cx: &mut Context<'_>, message: &tls::SdsSecretConfig) -> Option<SecretRef> {
    let name = cx.needed("name", &message.name)?;
    let source = match &message.sds_config {
        None => SecretSource::Static,
        Some(config) => cx.field("sds_config", |cx| secret_source(cx, config))?,
    };
    Some(SecretRef { name, source })
}

#[allow(deprecated, reason = "path is still written by hand")]
fn secret_source(cx: &mut Context<'_>, message: &core::ConfigSource) -> Option<SecretSource> {
    use core::config_source::ConfigSourceSpecifier as Kind;
    use core::grpc_service::TargetSpecifier;
    match &message.config_source_specifier {
        Some(Kind::Ads(_)) => Some(SecretSource::Ads),
        Some(Kind::Path(path)) => Some(SecretSource::Path(Path::new(path).into())),
        Some(Kind::PathConfigSource(source)) => Some(SecretSource::Path(Path::new(&source.path).into())),
        Some(Kind::ApiConfigSource(source)) => cx.field("api_config_source", |cx| {
            let service = source.grpc_services.first().and_then(|service| service.target_specifier.as_ref());
            match service {
                Some(TargetSpecifier::EnvoyGrpc(grpc)) => {
                    let cluster = cx.needed("grpc_services[0].envoy_grpc.cluster_name", &grpc.cluster_name)?;
                    Some(SecretSource::Grpc { cluster })
                }
                _ => cx.refuse("grpc_services with envoy_grpc is required"),
            }
        }),
        _ => cx.refuse("ads, path_config_source or api_config_source is required"),
    }
}

#[allow(deprecated, reason = "match_subject_alt_names is still sent by old control planes")]
fn validation(cx: &mut Context<'_>, message: &tls::CertificateValidationContext) -> Option<Validation> {
    let mut sans = cx.list("match_typed_subject_alt_names", &message.match_typed_subject_alt_names, san);
    sans.extend(cx.list("match_subject_alt_names", &message.match_subject_alt_names, |cx, message| {
        string(cx, message).map(|matcher| SanMatcher { kind: None, matcher })
    }));
    let trust_domains = match &message.custom_validator_config {
        Some(config) => cx.field("custom_validator_config", |cx| trust_domains(cx, config)),
        None => Vec::new(),
    };
    Some(Validation {
        secret: None,
        roots: cx.optional("trusted_ca", message.trusted_ca.as_ref(), data_source),
        trust_domains,
        watched_directory: message.watched_directory.as_ref().map(|directory| Path::new(&directory.path).into()),
        sans,
        certificate_hashes: message.verify_certificate_hash.iter().map(|hash| cx.share(hash)).collect(),
        spki_hashes: message.verify_certificate_spki.iter().map(|hash| cx.share(hash)).collect(),
        crl: cx.optional("crl", message.crl.as_ref(), data_source),
        only_leaf_crl: message.only_verify_leaf_cert_crl,
        accept_untrusted: message.trust_chain_verification
            == tls::certificate_validation_context::TrustChainVerification::AcceptUntrusted as i32,
        system_roots: message.system_root_certs.is_some(),
        max_depth: message.max_verify_depth.as_ref().map(|depth| depth.value),
    })
}

fn san(cx: &mut Context<'_>, message: &tls::SubjectAltNameMatcher) -> Option<SanMatcher> {
    use tls::subject_alt_name_matcher::SanType;
    let kind = match SanType::try_from(message.san_type) {
        Ok(SanType::Email) => SanKind::Email,
        Ok(SanType::Dns) => SanKind::Dns,
        Ok(SanType::Uri) => SanKind::Uri,
        Ok(SanType::IpAddress) => SanKind::Ip,
        _ => return cx.field("san_type", |cx| cx.refuse("EMAIL, DNS, URI or IP_ADDRESS is required")),
    };
    let matcher = cx.required("matcher", message.matcher.as_ref(), string)?;
    Some(SanMatcher { kind: Some(kind), matcher })
}

fn trust_domains(cx: &mut Context<'_>, config: &core::TypedExtensionConfig) -> Vec<(Arc<str>, crate::tls::DataSource)> {
    let Some(any) = config.typed_config.as_ref().filter(|any| type_name(any) == SPIFFE) else {
        cx.fault(format!("only {SPIFFE} is implemented"));
        return Vec::new();
    };
    let Some(message) = cx.unpack::<tls::SpiffeCertValidatorConfig>(any) else {
        return Vec::new();
    };
    cx.field("typed_config", |cx| {
        cx.list("trust_domains", &message.trust_domains, |cx, domain| {
            let name = cx.needed("name", &domain.name);
            let bundle = cx.required("trust_bundle", domain.trust_bundle.as_ref(), data_source);
            Some((name?, bundle?))
        })
    })
}

/// A secret that came as a resource.
pub(crate) fn secret(cx: &mut Context<'_>, bytes: &[u8]) -> Option<(Arc<str>, Secret)> {
    let message = match tls::Secret::decode(bytes) {
        Ok(message) => message,
        Err(error) => return cx.refuse(format!("is not a well-formed secret: {error}")),
    };
    let name = cx.needed("name", &message.name)?;
    let secret = match &message.r#type {
        Some(tls::secret::Type::TlsCertificate(message)) => {
            Secret::Certificate(Arc::new(cx.field("tls_certificate", |cx| certificate(cx, message))?))
        }
        Some(tls::secret::Type::ValidationContext(message)) => {
            Secret::Validation(Arc::new(cx.field("validation_context", |cx| validation(cx, message))?))
        }
        _ => return cx.refuse("tls_certificate or validation_context is required"),
    };
    Some((name, secret))
}
