//! The API from the other side: what the command line uses.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::api::{
    ApplyRequest, ChangeAnswer, Config, DeleteRequest, Finding, Object, Problem, Proxy, Status, Workload,
};

/// Largest answer read, in bytes.
const LARGEST: usize = 256 << 20;
/// How long an answer may take besides what the question itself waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where an API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiAddress {
    /// A Unix socket: `RUN-DIR/api.sock`.
    Unix(PathBuf),
    /// TCP, with the token of `RUN-DIR/api.token`.
    Tcp {
        /// Where.
        address: SocketAddr,
        /// What lets in.
        token: String,
    },
}

impl std::fmt::Display for ApiAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { address, .. } => write!(f, "{address}"),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("cannot reach the control plane at {address}: {reason}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// It took too long.
    #[error("the control plane at {address} did not answer in {} s", after.as_secs())]
    TimedOut {
        /// Where.
        address: String,
        /// How long.
        after: Duration,
    },
    /// It answered that it will not.
    #[error("{}", .0.message)]
    Refused(Box<Problem>),
    /// What it answered is not this API.
    #[error("{address} does not answer like a control plane: {reason}")]
    Strange {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
}

/// Asks one control plane; each question is a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    address: ApiAddress,
}

impl Client {
    /// A client of an address.
    pub fn new(address: ApiAddress) -> Self {
        Self { address }
    }

    /// A client of the control plane with this run directory.
    pub fn in_run_dir(directory: &Path) -> Self {
        Self::new(ApiAddress::Unix(directory.join("api.sock")))
    }

    /// Where it asks.
    pub fn address(&self) -> &ApiAddress {
        &self.address
    }

    /// The control plane itself.
    ///
    /// # Errors
    /// See [`ClientError`]; so in all of them.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/api/v1/status").await
    }

    /// Objects; an absent selector = all.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn objects(
        &self,
        kind: Option<&str>,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> Result<Vec<Object>, ClientError> {
        let pairs = [("kind", kind), ("namespace", namespace), ("name", name)];
        let given = pairs.iter().filter_map(|(key, value)| Some(format!("{key}={}", escape((*value)?))));
        let query: Vec<String> = given.collect();
        self.get(&format!("/api/v1/objects?{}", query.join("&"))).await
    }

    /// What is wrong in the configuration.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn findings(&self) -> Result<Vec<Finding>, ClientError> {
        self.get("/api/v1/findings").await
    }

    /// Connected proxies.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn proxies(&self) -> Result<Vec<Proxy>, ClientError> {
        self.get("/api/v1/proxies").await
    }

    /// Declared workloads.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn workloads(&self) -> Result<Vec<Workload>, ClientError> {
        self.get("/api/v1/workloads").await
    }

    /// What is served to a workload's proxy.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn config(&self, workload: &str) -> Result<Config, ClientError> {
        self.get(&format!("/api/v1/config/{}", escape(workload))).await
    }

    /// Declares objects.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn apply(&self, request: &ApplyRequest) -> Result<ChangeAnswer, ClientError> {
        self.post("/api/v1/apply", request, request.wait_ms).await
    }

    /// Removes objects.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(&self, request: &DeleteRequest) -> Result<ChangeAnswer, ClientError> {
        self.post("/api/v1/delete", request, request.wait_ms).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, Bytes::new(), PATIENCE).await
    }

    async fn post<Q: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        question: &Q,
        wait_ms: Option<u64>,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(question).map_err(|error| self.strange(&error))?;
        let patience = PATIENCE + Duration::from_millis(wait_ms.unwrap_or(0));
        self.ask(Method::POST, path, body.into(), patience).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<T, ClientError> {
        let mut request = Request::builder().method(method).uri(path).header("host", "tulle");
        request = request.header("content-type", "application/json");
        if let ApiAddress::Tcp { token, .. } = &self.address {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(|error| self.strange(&error))?;
        let asking = async {
            match &self.address {
                ApiAddress::Unix(path) => {
                    let stream =
                        tokio::net::UnixStream::connect(path).await.map_err(|error| self.unreachable(&error))?;
                    self.exchange(stream, request).await
                }
                ApiAddress::Tcp { address, .. } => {
                    let stream = tokio::net::TcpStream::connect(address).await;
                    self.exchange(stream.map_err(|error| self.unreachable(&error))?, request).await
                }
            }
        };
        let timed_out = || ClientError::TimedOut { address: self.address.to_string(), after: patience };
        let (status, body) = tokio::time::timeout(patience, asking).await.map_err(|_| timed_out())??;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| self.strange(&error));
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) if !problem.kind.is_empty() => Err(ClientError::Refused(Box::new(problem))),
            _ => Err(self.strange(&format!("status {status}"))),
        }
    }

    async fn exchange<S>(&self, stream: S, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.unreachable(&error))?;
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| self.strange(&error))?;
        Ok((status, body.to_bytes()))
    }

    fn unreachable(&self, reason: &dyn std::fmt::Display) -> ClientError {
        ClientError::Unreachable { address: self.address.to_string(), reason: reason.to_string() }
    }

    fn strange(&self, reason: &dyn std::fmt::Display) -> ClientError {
        ClientError::Strange { address: self.address.to_string(), reason: reason.to_string() }
    }
}

/// Percent-encodes what is not plain in a query or a path segment.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}
