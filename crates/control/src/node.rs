//! What a proxy says of itself in `node`.

use compile::WorkloadKey;
use proto::envoy::config::core::v3::Node;
use proto::google::protobuf::value::Kind;

/// What is read from a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub(crate) workload: WorkloadKey,
    /// `TULLE_ADMIN` of the metadata: where its admin interface listens.
    pub(crate) admin: Option<String>,
    /// `envoy/1.40.0`, as the client names itself.
    pub(crate) agent: String,
    /// Whether it is a gRPC library that wants the resources of proxyless gRPC.
    pub(crate) proxyless: bool,
}

/// Longest `node.id` and metadata text that is kept.
const LONGEST: usize = 512;

/// Reads a node. Its id is Istio's: `sidecar~IP~NAME.NAMESPACE~NAMESPACE.svc.cluster.local`.
pub(crate) fn read(node: &Node) -> Result<NodeFacts, String> {
    let wanted = "it must be sidecar~IP~NAME.NAMESPACE~NAMESPACE.svc.cluster.local";
    if node.id.len() > LONGEST {
        return Err(format!("node.id is longer than {LONGEST} bytes; {wanted}"));
    }
    let mut parts = node.id.split('~');
    let workload = match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(_), Some(workload), Some(_), None) => workload.parse::<WorkloadKey>().ok(),
        _ => None,
    };
    let workload = workload.ok_or_else(|| format!("node.id `{}` names no workload; {wanted}", node.id))?;
    let generator = text(node, "GENERATOR");
    let proxyless = generator.as_deref() == Some("grpc") || node.user_agent_name.to_ascii_lowercase().contains("grpc");
    Ok(NodeFacts { workload, admin: text(node, "TULLE_ADMIN"), agent: agent(node), proxyless })
}

fn text(node: &Node, key: &str) -> Option<String> {
    match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) if text.len() <= LONGEST => Some(text.clone()),
        _ => None,
    }
}

fn agent(node: &Node) -> String {
    use proto::envoy::config::core::v3::node::UserAgentVersionType;
    let version = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) => version.clone(),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build
            .version
            .as_ref()
            .map(|v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch))
            .unwrap_or_default(),
        None => String::new(),
    };
    let clean = |text: &str| text.chars().filter(|c| c.is_ascii_graphic()).take(40).collect::<String>();
    match (clean(&node.user_agent_name), clean(&version)) {
        (name, version) if version.is_empty() => name,
        (name, version) => format!("{name}/{version}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> Node {
        Node { id: id.to_owned(), user_agent_name: "envoy".to_owned(), ..Default::default() }
    }

    #[test]
    fn istios_form_is_read() {
        let facts = read(&node("sidecar~10.0.0.7~web-1.shop~shop.svc.cluster.local")).unwrap();
        assert_eq!(facts.workload, WorkloadKey::new("shop", "web-1"));
        assert_eq!((facts.agent.as_str(), facts.proxyless), ("envoy", false));
    }

    #[test]
    fn anything_else_is_refused_with_the_form() {
        for id in ["", "web", "sidecar~1~web~x", "a~b~c.d", "a~b~c.d~e~f", &"x".repeat(9999)] {
            assert!(read(&node(id)).unwrap_err().contains("sidecar~IP~NAME.NAMESPACE"), "{id}");
        }
    }
}
