//! What the real Envoy says.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use identity::tls::{ClientSettings, Credentials, KeySlot, TrustBundle, client_config};
use serde_json::{Value, json};
use testkit::issue::Authority;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_rustls::TlsConnector;

use super::Said;
use super::draw::{Asked, Caller, World};

/// A running Envoy with a plaintext and a TLS listener, both behind PROXY headers.
struct Envoy {
    child: Child,
    plain: SocketAddr,
    tls: SocketAddr,
    authority: Authority,
}

/// The verdicts of every filter for every request.
pub(super) async fn ask(world: &World) -> Result<Vec<Vec<Said>>> {
    let directory = tempfile::tempdir()?;
    let envoy = Envoy::start(world, directory.path()).await?;
    let mut said = Vec::new();
    for caller in &world.callers {
        said.extend(envoy.call(caller).await.with_context(|| format!("{caller:?}"))?);
    }
    Ok(said)
}

impl Envoy {
    async fn start(world: &World, directory: &Path) -> Result<Self> {
        let authority = Authority::new("Tulle test mesh")?;
        authority.write(directory, "spiffe://cluster.local/ns/shop/sa/server")?;
        let (plain, tls) = (free_port()?, free_port()?);
        let file = directory.join("envoy.json");
        std::fs::write(&file, bootstrap(world, directory, plain, tls).to_string())?;
        let log = std::fs::File::create(directory.join("envoy.log"))?;
        let child = Command::new(crate::setup::envoy()?)
            .args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("start Envoy")?;
        let mut this = Self { child, plain, tls, authority };
        this.await_ready(directory).await?;
        Ok(this)
    }

    async fn await_ready(&mut self, directory: &Path) -> Result<()> {
        let patience = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(self.tls).await.is_err() {
            if Instant::now() > patience || self.child.try_wait()?.is_some() {
                bail!("Envoy did not come up: {}", std::fs::read_to_string(directory.join("envoy.log"))?);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn call(&self, caller: &Caller) -> Result<Vec<Vec<Said>>> {
        let to = if caller.tls.is_some() { self.tls } else { self.plain };
        let mut stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let family = if caller.source.is_ipv6() { "TCP6" } else { "TCP4" };
        let (from, to) = (caller.source, caller.destination);
        let line = format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port());
        stream.write_all(line.as_bytes()).await?;
        let Some((identity, server_name)) = &caller.tls else { return exchange(stream, &caller.requests).await };
        let stream = self.secure(stream, identity, server_name).await?;
        exchange(stream, &caller.requests).await
    }

    async fn secure(
        &self,
        stream: TcpStream,
        identity: &str,
        server_name: &str,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let hour = Duration::from_secs(3600);
        let (chain, key) = self.authority.leaf(identity, hour, hour)?;
        let settings = ClientSettings {
            keys: Some(KeySlot::with(Credentials::from_pem(chain.as_bytes(), key.as_bytes())?)),
            trust: vec![TrustBundle::for_any_name(self.authority.root().as_bytes())?],
            send_server_name: true,
            ..ClientSettings::default()
        };
        let name = server_name.to_owned().try_into().context("server name")?;
        Ok(TlsConnector::from(Arc::clone(&client_config(&settings)?)).connect(name, stream).await?)
    }
}

fn free_port() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, requests: &[Asked]) -> Result<Vec<Vec<Said>>> {
    let mut buffer = BytesMut::new();
    let mut said = Vec::new();
    for asked in requests {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", asked.method, asked.path, asked.authority);
        for (name, value) in &asked.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).await?;
        let reading = testkit::head::read(&mut stream, &mut buffer, false);
        let reply = tokio::time::timeout(Duration::from_secs(20), reading).await.context("no answer in 20 s")??;
        let reply = reply.context("the connection was closed")?;
        let verdicts = reply.header("x-verdicts").join(" ");
        if reply.status != 200 || verdicts.is_empty() {
            bail!("status {} for {asked:?}", reply.status);
        }
        said.push(verdicts.split_whitespace().map(parse).collect::<Result<_>>()?);
    }
    Ok(said)
}

/// `allowed|NAME`, `denied|-`.
fn parse(word: &str) -> Result<Said> {
    let (result, policy) = word.split_once('|').with_context(|| format!("verdict {word:?}"))?;
    let allowed = match result {
        "allowed" => true,
        "denied" => false,
        other => bail!("verdict {other:?}"),
    };
    Ok(Said { allowed, policy: (!matches!(policy, "" | "-")).then(|| policy.to_owned()) })
}

fn bootstrap(world: &World, directory: &Path, plain: SocketAddr, tls: SocketAddr) -> Value {
    let source = |name: &str| json!({"filename": directory.join(name)});
    let secured = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "common_tls_context": {
            "tls_certificates": [{"certificate_chain": source("cert-chain.pem"), "private_key": source("key.pem")}],
            "validation_context": {"trusted_ca": source("root-cert.pem")},
        },
    }});
    json!({"static_resources": {"listeners": [listener(world, "plain", plain, None), listener(world, "tls", tls, Some(secured))]}})
}

fn listener(world: &World, name: &str, at: SocketAddr, transport: Option<Value>) -> Value {
    let inspectors = json!([
        {"name": "envoy.filters.listener.proxy_protocol", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"}},
        {"name": "envoy.filters.listener.tls_inspector", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}},
    ]);
    let verdicts: Vec<_> = (0..world.filters())
        .map(|filter| {
            let read = |what| format!("%DYNAMIC_METADATA(envoy.filters.http.rbac:f{filter}_shadow_{what})%");
            format!("{}|{}", read("engine_result"), read("effective_policy_id"))
        })
        .collect();
    let mut chain = json!({"filters": [{"name": "http", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "normalize_path": true,
        "use_remote_address": true,
        "http_protocol_options": {"allow_custom_methods": true},
        "http_filters": world.http_filters(),
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"],
            "response_headers_to_add": [{"header": {"key": "x-verdicts", "value": verdicts.join(" ")}}],
            "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]}]},
    }}]});
    if let Some(transport) = transport {
        chain["transport_socket"] = transport;
    }
    json!({
        "name": name,
        "address": {"socket_address": {"address": at.ip(), "port_value": at.port()}},
        "listener_filters": inspectors,
        "filter_chains": [chain],
    })
}
