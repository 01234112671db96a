//! The certificate service (Istio's CSR API): who asks decides which identity is issued, never what is asked.

mod rate;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::SpiffeId;
use proto::istio::auth::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use proto::istio::auth::{IstioCertificateRequest, IstioCertificateResponse};
use tonic::{Code, Request, Response, Status};

use crate::audit::{Audit, Event};
use crate::ca::csr::Csr;
use crate::ca::{Authority, CaError, Issued};
use crate::door::{Caller, UnixPeer};
use crate::tls::KeySlot;
use crate::token::{TokenRefusal, TokenStore};
use rate::RateLimit;

/// Says which identity a process on this machine has, by its Unix credentials; `None`: none.
pub type UnixPolicy = Arc<dyn Fn(&UnixPeer) -> Option<SpiffeId> + Send + Sync>;

/// The largest message: a request is a few KiB.
const MAX_MESSAGE: usize = 64 * 1024;

/// Signs certificates for authenticated callers. Mount it with [`CertificateService::into_server`] on the doors of
/// [`crate::door`], which tell it who calls.
pub struct CertificateService {
    authority: Arc<Authority>,
    tokens: TokenStore,
    audit: Arc<Audit>,
    unix_policy: Option<UnixPolicy>,
    rate: RateLimit,
}

/// How a caller proved who it is.
struct Authenticated {
    identity: SpiffeId,
    by: String,
}

impl CertificateService {
    /// A service that accepts join tokens and current certificates.
    pub fn new(authority: Arc<Authority>, tokens: TokenStore, audit: Arc<Audit>) -> Self {
        Self { authority, tokens, audit, unix_policy: None, rate: RateLimit::default() }
    }

    /// Also accepts processes by their Unix credentials, as a policy decides.
    #[must_use]
    pub fn with_unix_policy(mut self, policy: UnixPolicy) -> Self {
        self.unix_policy = Some(policy);
        self
    }

    /// The gRPC service, with its limits.
    pub fn into_server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Decides one request. `bearer` is the token in the `authorization` header, if any.
    fn issue(
        &self,
        caller: &Caller,
        bearer: Option<&str>,
        request: &IstioCertificateRequest,
        now: SystemTime,
    ) -> Result<Issued, Status> {
        self.rate.admit(&rate_key(caller, now)).map_err(|wait| {
            self.audit.note(Event::RateLimited, caller, &"too many certificate requests");
            Status::resource_exhausted(format!("too many certificate requests; try again in {wait:?}"))
        })?;
        let csr = Csr::from_pem(&request.csr).map_err(|error| {
            self.audit.note(Event::CertificateRefused, caller, &error);
            Status::invalid_argument(error.to_string())
        })?;
        let who = self.authenticate(caller, bearer, &csr, now)?;
        self.check_names(caller, &who, &csr)?;
        let wanted = u64::try_from(request.validity_duration).ok().filter(|s| *s > 0).map(Duration::from_secs);
        let issued = self.authority.sign(&csr, &who.identity, wanted, now).map_err(|error| {
            self.audit.note(Event::CertificateRefused, &who.identity, &error);
            match error {
                CaError::Ttl(_) => Status::invalid_argument(error.to_string()),
                _ => Status::internal("the authority cannot sign now; its log says why"),
            }
        })?;
        let until = crate::tls::when(issued.not_after);
        let detail = format_args!("serial {} until {until}, by {}, to {caller}", issued.serial, who.by);
        self.audit.note(Event::CertificateIssued, &who.identity, &detail);
        Ok(issued)
    }

    /// A token counts more than a certificate: who presents one that is refused gets nothing.
    fn authenticate(
        &self,
        caller: &Caller,
        bearer: Option<&str>,
        csr: &Csr,
        now: SystemTime,
    ) -> Result<Authenticated, Status> {
        if let Some(token) = bearer {
            return match self.tokens.redeem(token, csr.key_hash(), now) {
                Ok(redeemed) => {
                    let by = format!("token {} ({})", redeemed.id, redeemed.workload);
                    Ok(Authenticated { identity: redeemed.identity, by })
                }
                Err(TokenRefusal::Store(error)) => {
                    tracing::error!(%error, "the token store failed");
                    Err(Status::unavailable("the token store failed; the control plane's log says why"))
                }
                Err(refusal) => Err(Status::unauthenticated(refusal.to_string())),
            };
        }
        if caller.certificate.is_some() {
            return match caller.identity(now) {
                Ok(identity) => Ok(Authenticated { identity: identity.clone(), by: "certificate".to_owned() }),
                Err(refusal) => {
                    self.audit.note(Event::CertificateRefused, caller, &refusal);
                    let hint = "attest anew with a join token";
                    Err(Status::unauthenticated(format!("the client certificate is refused: {refusal}; {hint}")))
                }
            };
        }
        if let (Some(policy), Some(peer)) = (&self.unix_policy, &caller.unix)
            && let Some(identity) = policy(peer)
        {
            return Ok(Authenticated { identity, by: format!("uid {}", peer.uid) });
        }
        self.audit.note(Event::CertificateRefused, caller, &"no token and no client certificate");
        Err(Status::unauthenticated("present a join token (authorization: Bearer) or a current client certificate"))
    }

    /// A request may name its own identity or nothing.
    fn check_names(&self, caller: &Caller, who: &Authenticated, csr: &Csr) -> Result<(), Status> {
        let own = format!("URI:{}", who.identity);
        let Some(other) = csr.names().iter().find(|name| **name != own) else { return Ok(()) };
        let detail = format_args!("asked for {other:?}, proved by {}, from {caller}", who.by);
        self.audit.note(Event::OtherIdentityRefused, &who.identity, &detail);
        Err(Status::permission_denied(format!(
            "the request asks for {other:?}, but the caller is {}: only its own SPIFFE id is issued",
            who.identity
        )))
    }
}

impl std::fmt::Debug for CertificateService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateService").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// A caller with a certificate has its own allowance; the others share one per origin.
fn rate_key(caller: &Caller, now: SystemTime) -> String {
    match caller.identity(now) {
        Ok(identity) => format!("{identity} {}", caller.origin()),
        Err(_) => caller.origin(),
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
        let bearer = bearer(request.metadata())?;
        let issued =
            self.issue(&caller, bearer.as_ref().map(|token| token.as_str()), request.get_ref(), SystemTime::now())?;
        Ok(Response::new(IstioCertificateResponse { cert_chain: issued.chain }))
    }
}

/// The token of `authorization: Bearer TOKEN`.
fn bearer(metadata: &tonic::metadata::MetadataMap) -> Result<Option<zeroize::Zeroizing<String>>, Status> {
    let Some(value) = metadata.get("authorization") else { return Ok(None) };
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| zeroize::Zeroizing::new(token.trim().to_owned()))
    });
    token.map(Some).ok_or_else(|| Status::new(Code::Unauthenticated, "authorization must be `Bearer TOKEN`"))
}

/// The control plane's own key for its doors, renewed before half of its life for as long as somebody holds the slot.
///
/// # Errors
/// A name is not valid in a certificate.
pub fn control_keys(authority: Arc<Authority>, names: Vec<String>) -> Result<Arc<KeySlot>, CaError> {
    let first = authority.control_credentials(&names, SystemTime::now())?;
    let mut ends = first.not_after();
    let slot = KeySlot::with(first);
    let weak = Arc::downgrade(&slot);
    tokio::spawn(async move {
        loop {
            let left = ends.duration_since(SystemTime::now()).unwrap_or_default();
            let pause = left.mul_f64(0.45).clamp(Duration::from_millis(500), Duration::from_secs(600));
            tokio::time::sleep(pause).await;
            let Some(slot) = weak.upgrade() else { return };
            match authority.control_credentials(&names, SystemTime::now()) {
                Ok(credentials) => {
                    ends = credentials.not_after();
                    slot.set(vec![credentials]);
                }
                Err(error) => tracing::error!(%error, "renewing the control plane's own certificate"),
            }
        }
    });
    Ok(slot)
}
