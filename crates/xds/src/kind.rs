//! The kinds of resources that matter to the protocol: their order, and which of them come as a full state.

use proto::type_url;

/// Which of the two protocols a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavor {
    /// `DeltaAggregatedResources`: changes only.
    Delta,
    /// `StreamAggregatedResources`: whole lists for listeners and clusters.
    StateOfTheWorld,
}

/// Place of a type in make-before-break order: clusters, endpoints, listeners, routes, then everything else.
/// Secrets and extension configurations come last: they are asked for by what was sent before.
pub fn order(type_url: &str) -> u8 {
    match type_url {
        type_url::CLUSTER => 0,
        type_url::ENDPOINTS => 1,
        type_url::LISTENER => 2,
        type_url::ROUTE => 3,
        _ => 4,
    }
}

/// Whether a state-of-the-world response of this type is the whole state, so that what is missing was removed,
/// and whether an empty first subscription means "everything" (xDS protocol, "How the client specifies what
/// resources to return").
pub fn is_full_state(type_url: &str) -> bool {
    matches!(type_url, type_url::CLUSTER | type_url::LISTENER)
}

/// The name that subscribes to everything.
pub const WILDCARD: &str = "*";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_come_after_the_listeners_that_name_them_and_are_never_a_whole_state() {
        assert!(order(type_url::EXTENSION) > order(type_url::LISTENER));
        assert!(!is_full_state(type_url::EXTENSION));
    }
}
