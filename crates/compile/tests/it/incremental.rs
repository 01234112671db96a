//! Any order of changes leads to the same mesh, and nobody is forgotten.

use std::collections::BTreeMap;

use compile::{Change, EncodeOptions, Incremental, Mesh, encode};
use model::{Entry, ObjectKey};
use proptest::prelude::*;

use crate::world::{SHOP, entries};

/// Variants of objects that change each other's meaning.
fn pool() -> Vec<Entry> {
    let mut all = entries(SHOP);
    for subset in ["v1", "v2"] {
        all.extend(entries(&format!(
            r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: a, namespace: shop}}
spec: {{hosts: [catalog], exportTo: [{}], http: [{{route: [{{destination: {{host: catalog, subset: {subset}}}}}]}}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: b, namespace: shop}}
spec: {{http: [{{route: [{{destination: {{host: ledger.bank.svc.cluster.local, subset: {subset}}}}}]}}]}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: catalog, namespace: shop}}
spec: {{host: catalog, subsets: [{{name: {subset}, labels: {{version: {subset}}}}}]}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: shop}}
spec: {{mtls: {{mode: {}}}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p, namespace: {}}}
spec: {{selector: {{matchLabels: {{version: {subset}}}}}, rules: [{{}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: catalog, namespace: shop}}
spec: {{selector: {{version: {subset}}}, ports: [{{name: {}, port: 80, targetPort: 8080}}]}}
---
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
trustDomain: {subset}.example
"#,
            if subset == "v1" { "\".\"" } else { "\"*\"" },
            if subset == "v1" { "STRICT" } else { "DISABLE" },
            if subset == "v1" { "shop" } else { "istio-system" },
            if subset == "v1" { "http" } else { "tcp" },
        )));
        all.extend(entries(&format!(
            r#"
apiVersion: split.smi-spec.io/v1alpha1
kind: TrafficSplit
metadata: {{name: s, namespace: shop}}
spec: {{service: catalog, backends: [{{service: catalog, weight: 1}}]}}
---
apiVersion: tulle.dev/v1alpha1
kind: Workload
metadata: {{name: catalog-2, namespace: shop, labels: {{app: catalog, version: {subset}}}}}
spec: {{serviceAccount: {subset}, addresses: [127.77.0.9], ports: [{{name: http, number: 8080}}]}}
"#
        )));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn changes_add_up_and_name_everybody_concerned(steps in prop::collection::vec((any::<prop::sample::Index>(), prop::bool::weighted(0.7)), 1..40)) {
        let pool = pool();
        let mut incremental = Incremental::new();
        let mut declared: BTreeMap<ObjectKey, Entry> = BTreeMap::new();
        for (index, put) in steps {
            let entry = index.get(&pool);
            let before = incremental.mesh().clone();
            let applied = if put {
                declared.insert(entry.key.clone(), entry.clone());
                incremental.apply(Change::Put(entry.clone()))
            } else {
                declared.remove(&entry.key);
                incremental.apply(Change::Delete(entry.key.clone()))
            };
            let all: Vec<Entry> = declared.values().cloned().collect();
            let (scratch, _) = Mesh::compile(&all);
            prop_assert!(*incremental.mesh() == scratch, "after {} of {}", if put { "put" } else { "delete" }, entry.key);
            let options = EncodeOptions::default();
            for key in before.workload_keys().chain(scratch.workload_keys()) {
                if !applied.workloads.contains(key) {
                    let (old, new) = (encode(&before, key, &options), encode(&scratch, key, &options));
                    prop_assert!(old == new, "{} of {} changed {} without naming it", if put { "put" } else { "delete" }, entry.key, key);
                }
            }
        }
    }
}
