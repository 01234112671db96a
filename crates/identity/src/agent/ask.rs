//! Asking the control plane for a certificate.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use model::SpiffeId;
use proto::istio::auth::IstioCertificateRequest;
use proto::istio::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::ClientConfig;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use zeroize::Zeroizing;

use super::AgentError;
use crate::reach::{self, Server};
use crate::tls::Cause;
use crate::token::Secret;

/// How long one request may take, connecting included.
const ANSWER: Duration = Duration::from_secs(10);

/// A fresh P-256 key as PEM (PKCS#8).
pub(super) fn fresh_key() -> Result<Zeroizing<String>, AgentError> {
    Ok(Zeroizing::new(KeyPair::generate()?.serialize_pem()))
}

/// A request for an identity, signed with the key.
pub(super) fn csr(identity: &SpiffeId, key_pem: &str) -> Result<String, AgentError> {
    let key = KeyPair::from_pem(key_pem)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().as_str().try_into()?)];
    Ok(params.serialize_request(&key)?.pem()?)
}

/// Sends a request and gives the chain back.
pub(super) async fn ask(
    server: &Server,
    tls: Arc<ClientConfig>,
    bearer: Option<&Secret>,
    csr: String,
    ttl: Option<Duration>,
) -> Result<Vec<String>, AgentError> {
    let validity_duration = ttl.map_or(0, |ttl| i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
    let mut request = Request::new(IstioCertificateRequest { csr, validity_duration, metadata: None });
    if let Some(secret) = bearer {
        let text = Zeroizing::new(format!("Bearer {}", secret.reveal().as_str()));
        let mut value = tonic::metadata::MetadataValue::try_from(text.as_str())
            .map_err(|_| AgentError::Certificate("the join token is no header value".to_owned()))?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    let exchange = async {
        // Connected here and not by tonic, so that the reason of a failed handshake is not lost on the way.
        let line = reach::connect(server, tls).await.map_err(|error| AgentError::Reach {
            server: server.to_string(),
            cause: Cause::of_io(&error),
            reason: Cause::explain_io(&error),
        })?;
        let mut line = Some(TokioIo::new(line));
        let connector = tower::service_fn(move |_: http::Uri| {
            let line = line.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
            async move { line }
        });
        let lost = |reason: String| AgentError::Reach { server: server.to_string(), cause: Cause::Other, reason };
        let channel = Endpoint::from_static("https://control.tulle")
            .connect_with_connector(connector)
            .await
            .map_err(|error| lost(error.to_string()))?;
        let mut client = IstioCertificateServiceClient::new(channel).max_decoding_message_size(256 * 1024);
        client.create_certificate(request).await.map_err(|status| match status.code() {
            Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition => {
                AgentError::Refused(status.message().to_owned())
            }
            _ => lost(format!("{:?}: {}", status.code(), status.message())),
        })
    };
    let answered = tokio::time::timeout(ANSWER, exchange).await.map_err(|_| AgentError::Reach {
        server: server.to_string(),
        cause: Cause::Other,
        reason: format!("no answer within {ANSWER:?}"),
    })?;
    Ok(answered?.into_inner().cert_chain)
}
