//! The one door to Envoy's and Istio's message types, and their canonical JSON and YAML.
