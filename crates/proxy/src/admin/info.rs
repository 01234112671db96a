//! `/server_info` and `/memory`.

use serde_json::json;

use super::pages::{Desk, Page, json};

/// `/server_info`.
pub(super) fn server_info(desk: &Desk) -> Page {
    let uptime = format!("{}s", desk.tower.registry.age().as_secs());
    let bootstrap = desk.house.bootstrap();
    let node = bootstrap.node.as_ref().map(proto::json::to_json).unwrap_or_else(|| json!({}));
    let facts = desk.tower.facts();
    json(&json!({
        "version": concat!(env!("CARGO_PKG_VERSION"), "/tulle"),
        "state": desk.house.state().as_str(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
        "command_line_options": {
            "concurrency": desk.house.workers(),
            "service_node": facts.node,
            "mode": "Serve",
            "disable_hot_restart": true,
        },
        "node": node,
    }))
}

/// `/memory`: what the kernel tells; there is no allocator of our own to ask.
pub(super) fn memory() -> Page {
    let pss = crate::report::watchtower::own_pss().unwrap_or_default();
    json(&json!({ "total_physical_bytes": pss.to_string() }))
}
