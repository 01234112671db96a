//! Which security policies are in force at a workload.

use model::name::selects;
use model::security::{Authorizer, JwtRule, MtlsMode, PolicyAction};
use model::{AuthorizationPolicy, Origin, PeerAuthentication, Service, SpiffeId, Workload};

use crate::mesh::Mesh;

/// The mTLS mode of one port and which object says so (`None`: the default).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Inbound<'a> {
    pub(crate) mode: MtlsMode,
    pub(crate) origin: Option<&'a Origin>,
}

impl Mesh {
    /// The mTLS mode of a workload's port: port over workload over namespace over mesh; the oldest wins on each
    /// level; PERMISSIVE when nothing says otherwise.
    pub(crate) fn mtls_mode(&self, workload: &Workload, port: Option<u16>) -> Inbound<'_> {
        let root = self.config.root_namespace.as_str();
        let selected = self.peer_policies(&workload.namespace, |policy| {
            !policy.selector.is_empty() && selects(&policy.selector, &workload.labels)
        });
        if let (Some(policy), Some(port)) = (selected, port) {
            let at_port = policy.ports.iter().find(|(number, _)| *number == port).and_then(|(_, mode)| *mode);
            if let Some(mode) = at_port {
                return Inbound { mode, origin: Some(&policy.origin) };
            }
        }
        let namespace = self.peer_policies(&workload.namespace, |policy| policy.selector.is_empty());
        let mesh = self.peer_policies(root, |policy| policy.selector.is_empty());
        [selected, namespace, mesh]
            .into_iter()
            .flatten()
            .find_map(|policy| policy.mode.map(|mode| Inbound { mode, origin: Some(&policy.origin) }))
            .unwrap_or(Inbound { mode: MtlsMode::Permissive, origin: None })
    }

    fn peer_policies(
        &self,
        namespace: &str,
        wanted: impl Fn(&PeerAuthentication) -> bool,
    ) -> Option<&PeerAuthentication> {
        let declared = self.peer_authentications.get(namespace)?;
        declared.values().map(AsRef::as_ref).find(|policy| wanted(policy))
    }

    /// The policies of one action for a workload: the root namespace's, then its own namespace's.
    pub(crate) fn authorizations(&self, workload: &Workload, action: PolicyAction) -> Vec<&AuthorizationPolicy> {
        let root = self.config.root_namespace.as_str();
        let mut places = vec![root];
        if workload.namespace != root {
            places.push(&workload.namespace);
        }
        places
            .into_iter()
            .filter_map(|namespace| self.authorizations.get(namespace))
            .flat_map(|declared| declared.values())
            .map(AsRef::as_ref)
            .filter(|policy| policy.action == action && selects(&policy.selector, &workload.labels))
            .collect()
    }

    /// The issuers of tokens for a workload, in the order of their names: of the policies of the root namespace and of
    /// its own.
    pub(crate) fn issuers(&self, workload: &Workload) -> Vec<&JwtRule> {
        let root = self.config.root_namespace.as_str();
        let mut places = vec![root];
        if workload.namespace != root {
            places.push(&workload.namespace);
        }
        let policies = places.into_iter().filter_map(|namespace| self.request_authentications.get(namespace));
        let selected = policies
            .flat_map(|declared| declared.values())
            .filter(|policy| selects(&policy.selector, &workload.labels));
        let mut rules: Vec<&JwtRule> = selected.flat_map(|policy| &policy.rules).collect();
        rules.sort_by(|one, other| one.issuer.cmp(&other.issuer));
        rules
    }

    /// The external authorizer of a name.
    pub(crate) fn authorizer(&self, name: &str) -> Option<&Authorizer> {
        self.config.authorizers.iter().find(|authorizer| authorizer.name == name)
    }

    /// The service of an authorizer, as workloads of a namespace see it; it has the authorizer's port.
    pub(crate) fn authorizer_service(&self, authorizer: &Authorizer, seen_from: &str) -> Option<&Service> {
        let own = authorizer.namespace.as_deref().unwrap_or(seen_from);
        let hostname = self.resolve_host(&authorizer.host, own);
        let service = self.service(&hostname, seen_from)?;
        let fits = authorizer.namespace.as_ref().is_none_or(|namespace| *namespace == service.namespace);
        (fits && service.ports.iter().any(|port| port.number == authorizer.port)).then_some(service)
    }

    /// All trust domains that count as this mesh's, its own first.
    pub(crate) fn trust_domains(&self) -> impl Iterator<Item = &str> {
        let aliases = self.config.trust_domain_aliases.iter().map(String::as_str);
        let own = self.config.trust_domain.as_str();
        std::iter::once(own).chain(aliases.filter(move |alias| *alias != own))
    }

    /// The names a workload's certificate may carry, one for each trust domain.
    pub(crate) fn identities(&self, namespace: &str, account: &str) -> impl Iterator<Item = String> {
        self.trust_domains().filter_map(move |domain| {
            let id = SpiffeId::new(domain, namespace, account).ok()?;
            Some(id.to_string())
        })
    }
}
