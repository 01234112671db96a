//! Listening for API requests: who may ask, and the routes.

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use identity::audit::{Audit, Event};
use identity::door::{self, Caller, UnixPeer};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::{Problem, read, write};
use crate::inputs::Store;
use crate::proxies::Proxies;
use crate::world::World;

/// Largest request body, in bytes: a manifest of some 10,000 objects.
const LARGEST_BODY: usize = 16 << 20;

/// What the handlers work on.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) world: Arc<World>,
    pub(crate) proxies: Arc<Proxies>,
    pub(crate) store: Option<Arc<dyn Store>>,
}

fn routes(api: Api) -> Router {
    Router::new()
        .route("/api/v1/status", get(read::status))
        .route("/api/v1/objects", get(read::objects))
        .route("/api/v1/findings", get(read::findings))
        .route("/api/v1/proxies", get(read::proxies))
        .route("/api/v1/workloads", get(read::workloads))
        .route("/api/v1/config/{workload}", get(read::config))
        .route("/api/v1/apply", post(write::apply))
        .route("/api/v1/delete", post(write::delete))
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "not-found", "there is no such path in this API") })
        .layer(axum::extract::DefaultBodyLimit::max(LARGEST_BODY))
        .with_state(api)
}

/// Serves on loopback TCP to who knows the token.
pub(crate) async fn serve_tcp(listener: TcpListener, api: Api, token: Arc<str>) -> std::io::Result<()> {
    let app = routes(api).layer(middleware::from_fn_with_state(token, check_token));
    axum::serve(listener, app).await
}

/// Serves on a 0600 Unix socket to the same user.
pub(crate) fn serve_unix(
    path: &Path,
    api: Api,
    audit: Arc<Audit>,
    tasks: &mut JoinSet<()>,
) -> Result<(), identity::PrivateError> {
    let listener = door::bind_unix(path)?;
    let app = routes(api);
    tasks.spawn(async move {
        if let Err(error) = axum::serve(SameUser { listener, audit }, app).await {
            tracing::error!(event = "api_stopped", %error);
        }
    });
    Ok(())
}

async fn check_token(State(token): State<Arc<str>>, headers: HeaderMap, request: Request, next: Next) -> Response {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if same(given.as_bytes(), token.as_bytes()) {
        return next.run(request).await;
    }
    let message = "this API needs the token of the control plane's run directory (api.token)";
    problem(StatusCode::UNAUTHORIZED, "forbidden", message)
}

/// Compares in a time that does not tell where the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// A Unix socket that takes connections of its own user and of root only.
struct SameUser {
    listener: UnixListener,
    audit: Arc<Audit>,
}

impl axum::serve::Listener for SameUser {
    type Io = UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let own = rustix::process::geteuid().as_raw();
        loop {
            let (stream, address) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(event = "api_accept", %error);
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(peer) = stream.peer_cred() else { continue };
            if peer.uid() == own || peer.uid() == 0 {
                return (stream, address);
            }
            let peer = UnixPeer { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() };
            let caller = Caller { unix: Some(peer), ..Caller::default() };
            self.audit.note(Event::PeerRefused, &caller, &"this user may not use the API");
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

pub(super) fn problem(status: StatusCode, kind: &str, message: &str) -> Response {
    let problem = Problem { kind: kind.to_owned(), message: message.to_owned(), ..Problem::default() };
    (status, axum::Json(problem)).into_response()
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = match self.kind.as_str() {
            "invalid" => StatusCode::UNPROCESSABLE_ENTITY,
            "conflict" | "read-only" => StatusCode::CONFLICT,
            "forbidden" => StatusCode::FORBIDDEN,
            "not-found" => StatusCode::NOT_FOUND,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, axum::Json(self)).into_response()
    }
}
