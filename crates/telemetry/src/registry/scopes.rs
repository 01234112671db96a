//! Envoy's core series: what a cluster, an HTTP connection manager, a listener, a TCP proxy and the configuration
//! subscriptions count, under Envoy's names.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};

use super::cells::{Counter, Gauge, Histogram, HistogramSnapshot};

/// One number of a scope, as it is handed to a visitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A number that only grows.
    Counter(u64),
    /// A number that goes up and down.
    Gauge(u64),
    /// A distribution.
    Histogram(Box<HistogramSnapshot>),
}

/// A group of Envoy statistics with one label, such as everything about one cluster.
pub trait Scope: Default {
    /// First word of the text name: `cluster` in `cluster.NAME.upstream_rq_total`.
    const PREFIX: &'static str;
    /// The Prometheus label that holds the scope's name: `envoy_cluster_name`.
    const LABEL: &'static str;
    /// What the numbers by response code are called (`upstream_rq`); empty when there are none.
    const CODES: &'static str;

    /// The scope's name comes first in text names, as in `NAME.http_local_rate_limit.ok`.
    const NAME_FIRST: bool = false;

    /// Whether each code has a number of its own besides its class.
    const EACH_CODE: bool = true;

    /// The scope's fields, in Envoy's text form (`circuit_breakers.default.rq_open`), summed over `shards`.
    fn collect<'a>(shards: &mut dyn Iterator<Item = &'a Self>) -> Vec<(&'static str, Value)>
    where
        Self: 'a;

    /// Answers by status code.
    fn codes(&self) -> Option<&Codes> {
        None
    }
}

macro_rules! scope {
    (
        $(#[$doc:meta])* $name:ident $prefix:literal $label:literal
        $(codes $codes:ident = $code_name:literal each $each:literal;)?
        $(name first $first:literal;)?
        counters { $($counter:ident = $counter_name:literal),* $(,)? }
        gauges { $($gauge:ident = $gauge_name:literal),* $(,)? }
        histograms { $($histogram:ident = $histogram_name:literal),* $(,)? }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name {
            $(#[doc = concat!("Envoy's `", $counter_name, "`.")] pub $counter: Counter,)*
            $(#[doc = concat!("Envoy's `", $gauge_name, "`.")] pub $gauge: Gauge,)*
            $(#[doc = concat!("Envoy's `", $histogram_name, "`.")] pub $histogram: Histogram,)*
            $(#[doc = concat!("Envoy's `", $code_name, "_<code>` and `", $code_name, "_<class>xx`.")] pub $codes: Codes,)?
        }

        impl Scope for $name {
            const PREFIX: &'static str = $prefix;
            const LABEL: &'static str = $label;
            const CODES: &'static str = concat!($($code_name)?);
            $(const EACH_CODE: bool = $each;)?
            $(const NAME_FIRST: bool = $first;)?

            fn collect<'a>(shards: &mut dyn Iterator<Item = &'a Self>) -> Vec<(&'static str, Value)>
            where
                Self: 'a,
            {
                let shards: Vec<&Self> = shards.collect();
                vec![
                    $(($counter_name, Value::Counter(
                        shards.iter().fold(0, |sum: u64, shard| sum.wrapping_add(shard.$counter.value())))),)*
                    $(($gauge_name, Value::Gauge(
                        shards.iter().fold(0, |sum: u64, shard| sum.wrapping_add(shard.$gauge.value())))),)*
                    $(($histogram_name, {
                        let mut snapshot = Box::<HistogramSnapshot>::default();
                        for shard in &shards {
                            shard.$histogram.add_to(&mut snapshot);
                        }
                        Value::Histogram(snapshot)
                    }),)*
                ]
            }

            $(fn codes(&self) -> Option<&Codes> {
                Some(&self.$codes)
            })?
        }
    };
}

scope! {
    /// What is counted for one cluster.
    ClusterCells "cluster" "envoy_cluster_name"
    codes responses = "upstream_rq" each true;
    counters {
        health_check_attempt = "health_check.attempt",
        health_check_failure = "health_check.failure",
        health_check_network_failure = "health_check.network_failure",
        health_check_success = "health_check.success",
        membership_change = "membership_change",
        lb_healthy_panic = "lb_healthy_panic",
        outlier_ejections_enforced_total = "outlier_detection.ejections_enforced_total",
        outlier_ejections_overflow = "outlier_detection.ejections_overflow",
        outlier_ejections_enforced_consecutive_5xx = "outlier_detection.ejections_enforced_consecutive_5xx",
        outlier_ejections_enforced_consecutive_gateway_failure = "outlier_detection.ejections_enforced_consecutive_gateway_failure",
        outlier_ejections_enforced_consecutive_local_origin_failure = "outlier_detection.ejections_enforced_consecutive_local_origin_failure",
        outlier_ejections_enforced_success_rate = "outlier_detection.ejections_enforced_success_rate",
        outlier_ejections_enforced_failure_percentage = "outlier_detection.ejections_enforced_failure_percentage",
        update_success = "update_success",
        update_failure = "update_failure",
        upstream_cx_connect_fail = "upstream_cx_connect_fail",
        upstream_cx_connect_timeout = "upstream_cx_connect_timeout",
        upstream_cx_destroy = "upstream_cx_destroy",
        upstream_cx_destroy_local = "upstream_cx_destroy_local",
        upstream_cx_destroy_remote = "upstream_cx_destroy_remote",
        upstream_cx_destroy_with_active_rq = "upstream_cx_destroy_with_active_rq",
        upstream_cx_http1_total = "upstream_cx_http1_total",
        upstream_cx_http2_total = "upstream_cx_http2_total",
        upstream_cx_idle_timeout = "upstream_cx_idle_timeout",
        upstream_cx_max_requests = "upstream_cx_max_requests",
        upstream_cx_none_healthy = "upstream_cx_none_healthy",
        upstream_cx_overflow = "upstream_cx_overflow",
        upstream_cx_protocol_error = "upstream_cx_protocol_error",
        upstream_cx_rx_bytes_total = "upstream_cx_rx_bytes_total",
        upstream_cx_total = "upstream_cx_total",
        upstream_cx_tx_bytes_total = "upstream_cx_tx_bytes_total",
        ssl_handshake = "ssl.handshake",
        ssl_connection_error = "ssl.connection_error",
        ssl_fail_verify_error = "ssl.fail_verify_error",
        ssl_fail_verify_san = "ssl.fail_verify_san",
        ssl_session_reused = "ssl.session_reused",
        upstream_rq_cancelled = "upstream_rq_cancelled",
        upstream_rq_completed = "upstream_rq_completed",
        upstream_cx_pool_overflow = "upstream_cx_pool_overflow",
        upstream_rq_maintenance_mode = "upstream_rq_maintenance_mode",
        upstream_rq_max_duration_reached = "upstream_rq_max_duration_reached",
        upstream_rq_pending_failure_eject = "upstream_rq_pending_failure_eject",
        upstream_rq_pending_overflow = "upstream_rq_pending_overflow",
        upstream_rq_pending_total = "upstream_rq_pending_total",
        upstream_rq_per_try_idle_timeout = "upstream_rq_per_try_idle_timeout",
        upstream_rq_per_try_timeout = "upstream_rq_per_try_timeout",
        upstream_rq_retry = "upstream_rq_retry",
        upstream_rq_retry_backoff_exponential = "upstream_rq_retry_backoff_exponential",
        upstream_rq_retry_backoff_ratelimited = "upstream_rq_retry_backoff_ratelimited",
        upstream_rq_retry_limit_exceeded = "upstream_rq_retry_limit_exceeded",
        upstream_rq_retry_overflow = "upstream_rq_retry_overflow",
        upstream_rq_retry_success = "upstream_rq_retry_success",
        upstream_rq_rx_reset = "upstream_rq_rx_reset",
        upstream_rq_timeout = "upstream_rq_timeout",
        upstream_rq_total = "upstream_rq_total",
        upstream_rq_tx_reset = "upstream_rq_tx_reset",
    }
    gauges {
        circuit_cx_open = "circuit_breakers.default.cx_open",
        circuit_rq_open = "circuit_breakers.default.rq_open",
        circuit_rq_pending_open = "circuit_breakers.default.rq_pending_open",
        circuit_rq_retry_open = "circuit_breakers.default.rq_retry_open",
        circuit_high_cx_open = "circuit_breakers.high.cx_open",
        circuit_high_rq_open = "circuit_breakers.high.rq_open",
        circuit_high_rq_pending_open = "circuit_breakers.high.rq_pending_open",
        circuit_high_rq_retry_open = "circuit_breakers.high.rq_retry_open",
        membership_degraded = "membership_degraded",
        membership_excluded = "membership_excluded",
        membership_healthy = "membership_healthy",
        membership_total = "membership_total",
        outlier_ejections_active = "outlier_detection.ejections_active",
        upstream_cx_active = "upstream_cx_active",
        upstream_rq_active = "upstream_rq_active",
        upstream_rq_pending_active = "upstream_rq_pending_active",
    }
    histograms {
        upstream_cx_connect_ms = "upstream_cx_connect_ms",
        upstream_cx_length_ms = "upstream_cx_length_ms",
        upstream_rq_time = "upstream_rq_time",
    }
}

scope! {
    /// What is counted for one HTTP connection manager (`stat_prefix`).
    HttpCells "http" "envoy_http_conn_manager_prefix"
    codes responses = "downstream_rq" each false;
    counters {
        downstream_cx_delayed_close_timeout = "downstream_cx_delayed_close_timeout",
        downstream_cx_destroy = "downstream_cx_destroy",
        downstream_cx_destroy_active_rq = "downstream_cx_destroy_active_rq",
        downstream_cx_destroy_local = "downstream_cx_destroy_local",
        downstream_cx_destroy_remote = "downstream_cx_destroy_remote",
        downstream_cx_drain_close = "downstream_cx_drain_close",
        downstream_cx_http1_total = "downstream_cx_http1_total",
        downstream_cx_http2_total = "downstream_cx_http2_total",
        downstream_cx_idle_timeout = "downstream_cx_idle_timeout",
        downstream_cx_max_duration_reached = "downstream_cx_max_duration_reached",
        downstream_cx_max_requests_reached = "downstream_cx_max_requests_reached",
        downstream_cx_overload_disable_keepalive = "downstream_cx_overload_disable_keepalive",
        downstream_cx_protocol_error = "downstream_cx_protocol_error",
        downstream_cx_rx_bytes_total = "downstream_cx_rx_bytes_total",
        downstream_cx_ssl_total = "downstream_cx_ssl_total",
        downstream_cx_total = "downstream_cx_total",
        downstream_cx_tx_bytes_total = "downstream_cx_tx_bytes_total",
        downstream_cx_upgrades_total = "downstream_cx_upgrades_total",
        downstream_rq_completed = "downstream_rq_completed",
        downstream_rq_failed_path_normalization = "downstream_rq_failed_path_normalization",
        downstream_rq_header_timeout = "downstream_rq_header_timeout",
        downstream_rq_http1_total = "downstream_rq_http1_total",
        downstream_rq_http2_total = "downstream_rq_http2_total",
        downstream_rq_idle_timeout = "downstream_rq_idle_timeout",
        downstream_rq_max_duration_reached = "downstream_rq_max_duration_reached",
        downstream_rq_non_relative_path = "downstream_rq_non_relative_path",
        downstream_rq_overload_close = "downstream_rq_overload_close",
        downstream_rq_response_before_rq_complete = "downstream_rq_response_before_rq_complete",
        downstream_rq_rx_reset = "downstream_rq_rx_reset",
        downstream_rq_timeout = "downstream_rq_timeout",
        downstream_rq_too_large = "downstream_rq_too_large",
        downstream_rq_total = "downstream_rq_total",
        downstream_rq_tx_reset = "downstream_rq_tx_reset",
        downstream_rq_ws_on_non_ws_route = "downstream_rq_ws_on_non_ws_route",
        ext_authz_denied = "ext_authz.denied",
        ext_authz_error = "ext_authz.error",
        ext_authz_failure_mode_allowed = "ext_authz.failure_mode_allowed",
        ext_authz_ok = "ext_authz.ok",
        fault_aborts_injected = "fault.aborts_injected",
        fault_delays_injected = "fault.delays_injected",
        jwt_authn_allowed = "jwt_authn.allowed",
        jwt_authn_denied = "jwt_authn.denied",
        no_cluster = "no_cluster",
        no_route = "no_route",
        rbac_allowed = "rbac.allowed",
        rbac_denied = "rbac.denied",
        rbac_shadow_allowed = "rbac.shadow_allowed",
        rbac_shadow_denied = "rbac.shadow_denied",
        rq_direct_response = "rq_direct_response",
        rq_redirect = "rq_redirect",
        rq_reset_after_downstream_response_started = "rq_reset_after_downstream_response_started",
        rq_total = "rq_total",
    }
    gauges {
        downstream_cx_active = "downstream_cx_active",
        downstream_cx_http1_active = "downstream_cx_http1_active",
        downstream_cx_http2_active = "downstream_cx_http2_active",
        downstream_cx_ssl_active = "downstream_cx_ssl_active",
        downstream_cx_upgrades_active = "downstream_cx_upgrades_active",
        downstream_rq_active = "downstream_rq_active",
        fault_active_faults = "fault.active_faults",
    }
    histograms {
        downstream_cx_length_ms = "downstream_cx_length_ms",
        downstream_rq_time = "downstream_rq_time",
    }
}

scope! {
    /// What is counted for the filters that limit requests, by their `stat_prefix`.
    LimitCells "http_local_rate_limit" "envoy_local_http_ratelimit_prefix"
    name first true;
    counters {
        enabled = "enabled",
        enforced = "enforced",
        ok = "ok",
        rate_limited = "rate_limited",
        shadow_mode = "shadow_mode",
    }
    gauges {}
    histograms {}
}

scope! {
    /// What is counted for the filters that limit new connections, by their `stat_prefix`.
    ConnectionLimitCells "local_rate_limit" "envoy_local_network_ratelimit_prefix"
    counters { rate_limited = "rate_limited" }
    gauges {}
    histograms {}
}

scope! {
    /// What is counted for one listener (by address, `:` written as `_`).
    ListenerCells "listener" "envoy_listener_address"
    counters {
        downstream_cx_destroy = "downstream_cx_destroy",
        downstream_cx_overflow = "downstream_cx_overflow",
        downstream_cx_overload_reject = "downstream_cx_overload_reject",
        downstream_cx_total = "downstream_cx_total",
        downstream_cx_transport_socket_connect_timeout = "downstream_cx_transport_socket_connect_timeout",
        downstream_global_cx_overflow = "downstream_global_cx_overflow",
        downstream_listener_filter_error = "downstream_listener_filter_error",
        downstream_listener_filter_remote_close = "downstream_listener_filter_remote_close",
        downstream_pre_cx_timeout = "downstream_pre_cx_timeout",
        no_filter_chain_match = "no_filter_chain_match",
        ssl_connection_error = "ssl.connection_error",
        ssl_fail_verify_error = "ssl.fail_verify_error",
        ssl_fail_verify_no_cert = "ssl.fail_verify_no_cert",
        ssl_fail_verify_san = "ssl.fail_verify_san",
        ssl_handshake = "ssl.handshake",
        ssl_session_reused = "ssl.session_reused",
    }
    gauges {
        downstream_cx_active = "downstream_cx_active",
        downstream_pre_cx_active = "downstream_pre_cx_active",
    }
    histograms {
        downstream_cx_length_ms = "downstream_cx_length_ms",
    }
}

scope! {
    /// What is counted for one TCP proxy (`stat_prefix`).
    TcpCells "tcp" "envoy_tcp_prefix"
    counters {
        downstream_cx_no_route = "downstream_cx_no_route",
        downstream_cx_rx_bytes_total = "downstream_cx_rx_bytes_total",
        downstream_cx_total = "downstream_cx_total",
        downstream_cx_tx_bytes_total = "downstream_cx_tx_bytes_total",
        idle_timeout = "idle_timeout",
        max_downstream_connection_duration = "max_downstream_connection_duration",
        upstream_flush_total = "upstream_flush_total",
    }
    gauges {
        downstream_cx_rx_bytes_buffered = "downstream_cx_rx_bytes_buffered",
        upstream_flush_active = "upstream_flush_active",
    }
    histograms {}
}

/// Most different codes that get a number of their own in one scope and worker; the rest are in their class only.
const CODE_SLOTS: usize = 16;

/// Answers by status code: one number per class, and one per code for the first sixteen codes seen.
#[derive(Debug, Default)]
pub struct Codes {
    classes: [AtomicU64; 5],
    codes: [AtomicU16; CODE_SLOTS],
    counts: [AtomicU64; CODE_SLOTS],
}

impl Value {
    /// Adds another part of the same series.
    pub fn add(&mut self, other: &Self) {
        match (self, other) {
            (Self::Counter(sum), Self::Counter(value)) | (Self::Gauge(sum), Self::Gauge(value)) => {
                *sum = sum.wrapping_add(*value);
            }
            (Self::Histogram(sum), Self::Histogram(value)) => {
                sum.buckets.iter_mut().zip(value.buckets).for_each(|(sum, value)| *sum += value);
                sum.sum = sum.sum.wrapping_add(value.sum);
            }
            _ => {}
        }
    }
}

impl Codes {
    /// Counts an answer; codes outside 100..=599 are not counted.
    #[inline]
    pub fn inc(&self, code: u16) {
        let Some(class) = (code / 100).checked_sub(1).and_then(|class| self.classes.get(usize::from(class))) else {
            return;
        };
        class.fetch_add(1, Relaxed);
        for (slot, count) in self.codes.iter().zip(&self.counts) {
            let held = slot.load(Relaxed);
            let ours = held == code || (held == 0 && claim(slot, code));
            if ours {
                count.fetch_add(1, Relaxed);
                return;
            }
        }
    }

    /// Numbers of `1xx` to `5xx`.
    pub fn classes(&self) -> [u64; 5] {
        std::array::from_fn(|index| self.classes.get(index).map_or(0, |class| class.load(Relaxed)))
    }

    /// The codes seen, with their numbers.
    pub fn each(&self) -> impl Iterator<Item = (u16, u64)> {
        self.codes
            .iter()
            .zip(&self.counts)
            .map(|(code, count)| (code.load(Relaxed), count.load(Relaxed)))
            .filter(|(code, _)| *code != 0)
    }
}

/// Takes a free slot for `code`; another worker may have been faster, with this code or another.
fn claim(slot: &AtomicU16, code: u16) -> bool {
    match slot.compare_exchange(0, code, Relaxed, Relaxed) {
        Ok(_) => true,
        Err(held) => held == code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_a_number_each_until_the_slots_are_full() {
        let codes = Codes::default();
        for code in 200..230 {
            codes.inc(code);
        }
        codes.inc(200);
        codes.inc(99);
        codes.inc(600);
        assert_eq!(codes.classes(), [0, 31, 0, 0, 0]);
        assert_eq!(codes.each().count(), CODE_SLOTS);
        assert_eq!(codes.each().next(), Some((200, 2)));
    }

    #[test]
    fn gauges_may_fall_in_another_shard_than_they_rose() {
        let (one, two) = (ClusterCells::default(), ClusterCells::default());
        one.upstream_cx_active.inc();
        one.upstream_cx_active.inc();
        two.upstream_cx_active.dec();
        let fields = ClusterCells::collect(&mut [&one, &two].into_iter());
        let value = fields.iter().find(|(name, _)| *name == "upstream_cx_active").map(|(_, value)| value.clone());
        assert_eq!(value, Some(Value::Gauge(1)));
    }
}
