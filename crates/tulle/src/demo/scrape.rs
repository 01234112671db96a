//! Asking a proxy's admin socket, and reading its metrics.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// How long an admin socket may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// One line of a metrics page.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Sample {
    /// A label's value; empty when absent.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.label(name) == *value)
    }
}

/// The sum of all samples of a metric with these labels.
pub(crate) fn sum(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    samples.iter().filter(|sample| sample.name == name && sample.has(labels)).map(|sample| sample.value).sum()
}

/// The body that an admin socket answers with.
pub(crate) async fn get(socket: &Path, path: &str) -> anyhow::Result<String> {
    let work = async {
        let stream = UnixStream::connect(socket).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::get(path).header("host", "localhost").body(Full::<Bytes>::default())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        connection.abort();
        anyhow::ensure!(status.is_success(), "{path} answered {status}");
        Ok(String::from_utf8_lossy(&body).into_owned())
    };
    tokio::time::timeout(PATIENCE, work).await.context("no answer in time")?
}

/// A proxy's metrics.
pub(crate) async fn metrics(socket: &Path) -> anyhow::Result<Vec<Sample>> {
    Ok(parse(&get(socket, "/stats/prometheus").await?))
}

/// Reads the Prometheus text format; lines that are none are left out.
fn parse(page: &str) -> Vec<Sample> {
    page.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest, labels) = match line.split_once('{') {
        Some((name, rest)) => {
            let (labels, rest) = labels(rest)?;
            (name, rest, labels)
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            (name, rest, BTreeMap::new())
        }
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// `a="x",b="y"} rest`, with `\"`, `\\` and `\n` escaped inside values.
fn labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut letters = after.char_indices();
        loop {
            match letters.next()? {
                (at, '"') => {
                    rest = after.get(at + 1..)?;
                    break;
                }
                (_, '\\') => match letters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, letter) => value.push(letter),
            }
        }
        labels.insert(name.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read() {
        let page =
            "# TYPE a counter\na{x=\"1\",y=\"q\\\"}\"} 3\na{x=\"2\"} 4 1700000000\nb 0.5\nnonsense\nc{x=\"1} 2\n";
        let samples = parse(page);
        assert_eq!(samples.len(), 3);
        assert_eq!(samples[0].label("y"), "q\"}");
        assert!((sum(&samples, "a", &[]) - 7.0).abs() < 1e-9);
        assert!((sum(&samples, "a", &[("x", "2")]) - 4.0).abs() < 1e-9);
    }
}
