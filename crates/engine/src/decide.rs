//! The mesh's question: this caller wants that; may it, and where does it go?

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::cluster::Cluster;
use crate::dice::Dice;
use crate::facts::Facts;
use crate::fault::FaultHold;
use crate::http_manager::HttpManager;
use crate::moment::Moment;
use crate::plan::Plan;
use crate::rbac::RbacReport;
use crate::reply::{Flags, LocalReply};
use crate::routes::{ForwardAction, Route, RouteAction, RouteTable, VirtualHost};

/// The answer for one request.
#[derive(Debug)]
pub struct Decision {
    /// What to do, after `delay`.
    pub outcome: Outcome,
    /// A fault's delay: wait so long first (`DI`). The route's timeout begins afterwards.
    pub delay: Option<Duration>,
    /// Keep it as long as the request lives.
    pub fault: Option<FaultHold>,
    /// What each authorization filter said, in order.
    pub rbac: Vec<RbacReport>,
    /// CORS headers to put on the response, whoever makes it.
    pub cors: Vec<(HeaderName, HeaderValue)>,
    /// The route that matched, whatever then happened; for logs, metrics and header changes.
    pub matched: Option<Matched>,
    /// Response flags so far (`DI`).
    pub flags: Flags,
}

/// What to do with the request.
#[derive(Debug)]
pub enum Outcome {
    /// Send it on.
    Forward(Forward),
    /// Answer it.
    Reply(LocalReply),
}

/// The route that matched.
#[derive(Debug, Clone)]
pub struct Matched {
    /// The table.
    pub table: Arc<RouteTable>,
    /// The virtual host.
    pub host: Arc<VirtualHost>,
    /// The route.
    pub route: Arc<Route>,
    /// Which of its weighted clusters, if it has such.
    pub weighted: Option<usize>,
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub struct Forward {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// The route's hash of the request (ring hash, Maglev).
    pub hash: Option<u64>,
    /// A cookie that the hash policy makes: put it on the response.
    pub set_cookie: Option<HeaderValue>,
    /// Limit of the whole exchange, retries included; `None`: none.
    pub timeout: Option<Duration>,
    /// Idle limit of the exchange; `None`: none.
    pub idle_timeout: Option<Duration>,
    /// Limit of the stream's life; `None`: none.
    pub max_stream_duration: Option<Duration>,
    /// Copies to make: cluster, keep the host name as it is.
    pub mirrors: Vec<Mirror>,
}

/// A copy to make.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Where to.
    pub cluster: Arc<Cluster>,
    /// Leave the authority without `-shadow`.
    pub keep_host: bool,
}

impl Matched {
    /// The forwarding settings, if the route forwards.
    #[must_use]
    pub fn forward(&self) -> Option<&ForwardAction> {
        match &self.route.action {
            RouteAction::Forward(action) => Some(action),
            _ => None,
        }
    }
}

/// Decides. Filters run in the manager's order; then the route acts.
#[must_use]
pub fn decide(plan: &Plan, manager: &HttpManager, facts: &Facts<'_>, now: Moment, dice: &mut Dice) -> Decision {
    let _ = (plan, manager, facts, now, dice);
    let reply = LocalReply::error(http::StatusCode::NOT_FOUND, "", "route_not_found", Flags::NO_ROUTE_FOUND);
    Decision {
        outcome: Outcome::Reply(reply),
        delay: None,
        fault: None,
        rbac: Vec::new(),
        cors: Vec::new(),
        matched: None,
        flags: Flags::NONE,
    }
}
