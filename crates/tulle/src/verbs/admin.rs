//! Reading a proxy's admin interface.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Largest page read, in bytes.
const LARGEST: usize = 256 << 20;
/// How long a page may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The text of a page. `address` is `unix:PATH` or `IP:PORT`.
pub(crate) async fn get(address: &str, path: &str) -> Result<String, String> {
    let asking = async {
        match address.strip_prefix("unix:") {
            Some(socket) => {
                let stream = tokio::net::UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
                exchange(stream, "localhost", path).await
            }
            None => {
                let stream = tokio::net::TcpStream::connect(address).await.map_err(|error| error.to_string())?;
                exchange(stream, address, path).await
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.map_err(|_| format!("no answer in {} s", PATIENCE.as_secs()))?
}

async fn exchange<S>(stream: S, host: &str, path: &str) -> Result<String, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let request = http::Request::get(path).header("host", host).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| error.to_string())?;
    if !status.is_success() {
        return Err(format!("status {status}"));
    }
    String::from_utf8(body.to_bytes().into()).map_err(|_| "the page is no text".to_owned())
}
