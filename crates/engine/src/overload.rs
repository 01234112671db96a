//! Overload: which measures follow from which pressures. The shell measures and acts.
//!
//! Semantics are those of Envoy's `config.overload.v3.OverloadManager`: a monitor yields a pressure from 0 to 1, a
//! trigger turns it into a strength from 0 to 1 (all or nothing for a threshold, a straight line for a scaled one), and
//! an action is as strong as the strongest of its triggers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What a bootstrap says about overload.
#[derive(Debug, Clone, PartialEq)]
pub struct Overload {
    /// How often pressures are measured. Default 1 s.
    pub refresh: Duration,
    /// What is measured, in order.
    pub monitors: Vec<Monitor>,
    /// What is done.
    pub rules: Vec<Rule>,
    /// Client connections at once on listeners that do not ignore it; one more is closed. `None`: the shell's own limit.
    pub max_connections: Option<u64>,
}

/// Something that is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    /// Its name, by which triggers know it.
    pub name: Arc<str>,
    /// What it is.
    pub kind: MonitorKind,
}

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MonitorKind {
    /// The memory of this process against a limit in bytes.
    Memory {
        /// The limit.
        most: u64,
    },
    /// The memory of this process's control group against its limit, or a lower one in bytes.
    Group {
        /// The lower one.
        most: Option<u64>,
    },
    /// A number in a file, for tests.
    File(Arc<Path>),
}

/// One action and what sets it off.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// What is done.
    pub action: Action,
    /// What sets it off: the monitor's place, and how.
    pub triggers: Vec<(usize, Trigger)>,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action {
    /// Listeners accept nothing.
    StopAccepting,
    /// Accepted connections are closed at once.
    RejectConnections,
    /// New requests are answered with 503.
    StopRequests,
    /// Connections end after the exchange that is under way.
    DisableKeepalive,
    /// Idle client connections end sooner.
    ReduceIdle(Floor),
}

/// How far a timeout may shrink.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Floor {
    /// To this time.
    Time(Duration),
    /// To this share of what is configured, 0 to 1.
    Share(f64),
}

/// How a pressure becomes a strength.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Trigger {
    /// 1 from this pressure on, else 0.
    Threshold(f64),
    /// 0 up to the first, 1 from the second on, a straight line between.
    Scaled {
        /// Where it begins.
        from: f64,
        /// Where it is full.
        to: f64,
    },
}

/// How strong each measure is, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Measures {
    /// Listeners accept nothing while it is 1.
    pub stop_accepting: f64,
    /// The share of new connections that is closed.
    pub reject_connections: f64,
    /// The share of new requests that is answered with 503.
    pub stop_requests: f64,
    /// The share of exchanges after which the connection ends.
    pub disable_keepalive: f64,
    /// How much idle timeouts shrink, and how far.
    pub reduce_idle: Option<(f64, Floor)>,
}

impl Trigger {
    /// The strength at a pressure.
    #[must_use]
    pub fn strength(self, pressure: f64) -> f64 {
        match self {
            Self::Threshold(at) => f64::from(u8::from(pressure >= at)),
            Self::Scaled { to, .. } if pressure >= to => 1.0,
            Self::Scaled { from, .. } if pressure <= from => 0.0,
            Self::Scaled { from, to } => (pressure - from) / (to - from),
        }
    }
}

impl Overload {
    /// The measures at these pressures, one for each monitor; a pressure that could not be measured is 0.
    #[must_use]
    pub fn judge(&self, pressures: &[f64]) -> Measures {
        let mut measures = Measures::default();
        for rule in &self.rules {
            let strengths = rule.triggers.iter().map(|(at, trigger)| {
                let pressure = pressures.get(*at).copied().filter(|pressure| pressure.is_finite()).unwrap_or(0.0);
                trigger.strength(pressure)
            });
            let strength = strengths.fold(0.0, f64::max);
            match rule.action {
                Action::StopAccepting => measures.stop_accepting = strength,
                Action::RejectConnections => measures.reject_connections = strength,
                Action::StopRequests => measures.stop_requests = strength,
                Action::DisableKeepalive => measures.disable_keepalive = strength,
                Action::ReduceIdle(floor) => measures.reduce_idle = (strength > 0.0).then_some((strength, floor)),
            }
        }
        measures
    }

    /// What is done where no bootstrap says otherwise: near this much memory no connection is accepted any more and
    /// those that are there end; nearer still new requests are answered with 503.
    #[must_use]
    pub fn safe(most: u64) -> Self {
        let rule = |action, at| Rule { action, triggers: vec![(0, Trigger::Threshold(at))] };
        Self {
            refresh: Duration::from_millis(250),
            monitors: vec![Monitor { name: "memory".into(), kind: MonitorKind::Memory { most } }],
            rules: vec![
                rule(Action::DisableKeepalive, 0.90),
                rule(Action::StopAccepting, 0.95),
                rule(Action::StopRequests, 0.98),
            ],
            max_connections: None,
        }
    }
}

impl Measures {
    /// A timeout as it is now.
    #[must_use]
    pub fn idle(&self, configured: Duration) -> Duration {
        let Some((strength, floor)) = self.reduce_idle else { return configured };
        let least = match floor {
            Floor::Time(time) => time.min(configured),
            Floor::Share(share) => configured.mul_f64(share.clamp(0.0, 1.0)),
        };
        configured.saturating_sub(configured.saturating_sub(least).mul_f64(strength.clamp(0.0, 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scaled_trigger_is_a_straight_line() {
        let trigger = Trigger::Scaled { from: 0.5, to: 0.9 };
        let seen: Vec<f64> = [0.0, 0.5, 0.6, 0.7, 0.9, 1.0].iter().map(|p| trigger.strength(*p)).collect();
        for (seen, wanted) in seen.iter().zip([0.0, 0.0, 0.25, 0.5, 1.0, 1.0]) {
            assert!((seen - wanted).abs() < 1e-9, "{seen} for {wanted}");
        }
    }

    #[test]
    fn safe_measures_come_one_after_another() {
        let overload = Overload::safe(1);
        let at = |pressure| overload.judge(&[pressure]);
        assert_eq!(at(0.5), Measures::default());
        assert_eq!((at(0.91).disable_keepalive, at(0.91).stop_accepting), (1.0, 0.0));
        assert_eq!((at(0.96).stop_accepting, at(0.96).stop_requests), (1.0, 0.0));
        assert_eq!(at(0.99).stop_requests, 1.0);
        assert_eq!(overload.judge(&[f64::NAN]), Measures::default());
        assert_eq!(overload.judge(&[]), Measures::default());
    }

    #[test]
    fn timeouts_shrink_to_their_floor_and_no_further() {
        let hour = Duration::from_secs(3600);
        let with = |strength, floor| Measures { reduce_idle: Some((strength, floor)), ..Measures::default() };
        assert_eq!(Measures::default().idle(hour), hour);
        assert_eq!(with(1.0, Floor::Time(Duration::from_secs(2))).idle(hour), Duration::from_secs(2));
        assert_eq!(with(0.5, Floor::Share(0.0)).idle(hour), hour / 2);
        assert_eq!(with(1.0, Floor::Time(hour * 2)).idle(hour), hour);
    }
}
