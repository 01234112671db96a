//! The overload manager of a bootstrap.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::envoy::config::overload::v3 as xds;
use proto::envoy::extensions::resource_monitors::{
    cgroup_memory::v3::CgroupMemoryConfig, downstream_connections::v3::DownstreamConnectionsConfig,
    fixed_heap::v3::FixedHeapConfig, injected_resource::v3::InjectedResourceConfig,
};
use proto::google::protobuf::Any;

use super::{Context, type_name};
use crate::overload::{Action, Floor, Monitor, MonitorKind, Overload, Rule, Trigger};

const REFRESH: Duration = Duration::from_secs(1);

pub(crate) fn overload(cx: &mut Context<'_>, message: &xds::OverloadManager) -> Option<Overload> {
    let mut max_connections = None;
    let measured = cx.list("resource_monitors", &message.resource_monitors, |cx, message| {
        let Some(xds::resource_monitor::ConfigType::TypedConfig(any)) = &message.config_type else {
            return cx.field("typed_config", |cx| cx.refuse("is required"));
        };
        let name = cx.needed("name", &message.name)?;
        cx.field("typed_config", |cx| monitor(cx, name, any, &mut max_connections))
    });
    let monitors: Vec<Monitor> = measured.into_iter().flatten().collect();
    let rules = cx.list("actions", &message.actions, |cx, message| rule(cx, message, &monitors));
    let refresh = cx.duration("refresh_interval", message.refresh_interval.as_ref());
    let refresh = refresh.filter(|refresh| !refresh.is_zero()).unwrap_or(REFRESH);
    Some(Overload { refresh, monitors, rules: rules.into_iter().flatten().collect(), max_connections })
}

/// `Some(None)`: it is not measured but counted.
fn monitor(cx: &mut Context<'_>, name: Arc<str>, any: &Any, connections: &mut Option<u64>) -> Option<Option<Monitor>> {
    let kind = match type_name(any).rsplit('.').next().unwrap_or_default() {
        "FixedHeapConfig" => match cx.unpack::<FixedHeapConfig>(any)?.max_heap_size_bytes {
            0 => return cx.field("max_heap_size_bytes", |cx| cx.refuse("must be more than 0")),
            most => MonitorKind::Memory { most },
        },
        "CgroupMemoryConfig" => {
            let most = cx.unpack::<CgroupMemoryConfig>(any)?.max_memory_bytes;
            MonitorKind::Group { most: Some(most).filter(|most| *most > 0) }
        }
        "InjectedResourceConfig" => {
            let file = cx.unpack::<InjectedResourceConfig>(any)?.filename;
            if file.is_empty() {
                return cx.field("filename", |cx| cx.refuse("must not be empty"));
            }
            MonitorKind::File(Path::new(&file).into())
        }
        "DownstreamConnectionsConfig" => {
            let most = cx.unpack::<DownstreamConnectionsConfig>(any)?.max_active_downstream_connections;
            return match u64::try_from(most) {
                Ok(most @ 1..) => {
                    *connections = Some(most);
                    Some(None)
                }
                _ => cx.field("max_active_downstream_connections", |cx| cx.refuse("must be more than 0")),
            };
        }
        _ => return cx.refuse(format!("the resource monitor {} is not implemented", type_name(any))),
    };
    Some(Some(Monitor { name, kind }))
}

/// A rule for each thing that the action does.
fn rule(cx: &mut Context<'_>, message: &xds::OverloadAction, monitors: &[Monitor]) -> Option<Vec<Rule>> {
    let actions = match message.name.as_str() {
        "envoy.overload_actions.stop_accepting_connections" => vec![Action::StopAccepting],
        "envoy.overload_actions.reject_incoming_connections" => vec![Action::RejectConnections],
        "envoy.overload_actions.stop_accepting_requests" => vec![Action::StopRequests],
        "envoy.overload_actions.disable_http_keepalive" => vec![Action::DisableKeepalive],
        "envoy.overload_actions.reduce_timeouts" => timers(cx, message)?,
        other => {
            let text = format!("the overload action {other:?} is not implemented");
            return cx.field("name", |cx| cx.refuse(text));
        }
    };
    let triggers = cx.list("triggers", &message.triggers, |cx, message| trigger(cx, message, monitors));
    if message.triggers.is_empty() {
        return cx.field("triggers", |cx| cx.refuse("at least one is required"));
    }
    Some(actions.into_iter().map(|action| Rule { action, triggers: triggers.clone() }).collect())
}

fn timers(cx: &mut Context<'_>, message: &xds::OverloadAction) -> Option<Vec<Action>> {
    use xds::scale_timers_overload_action_config::{TimerType, scale_timer::OverloadAdjust};
    let Some(any) = &message.typed_config else {
        return cx.field("typed_config", |cx| cx.refuse("is required"));
    };
    cx.field("typed_config", |cx| {
        let config: xds::ScaleTimersOverloadActionConfig = cx.unpack(any)?;
        Some(cx.list("timer_scale_factors", &config.timer_scale_factors, |cx, timer| {
            if timer.timer != TimerType::HttpDownstreamConnectionIdle as i32 {
                return cx.field("timer", |cx| cx.refuse("only HTTP_DOWNSTREAM_CONNECTION_IDLE is implemented"));
            }
            let floor = match &timer.overload_adjust {
                Some(OverloadAdjust::MinTimeout(time)) => Floor::Time(cx.duration("min_timeout", Some(time))?),
                Some(OverloadAdjust::MinScale(percent)) => Floor::Share(percent.value / 100.0),
                None => return cx.refuse("one of min_timeout, min_scale is required"),
            };
            Some(Action::ReduceIdle(floor))
        }))
    })
}

fn trigger(cx: &mut Context<'_>, message: &xds::Trigger, monitors: &[Monitor]) -> Option<(usize, Trigger)> {
    let Some(at) = monitors.iter().position(|monitor| *monitor.name == *message.name) else {
        let text = format!("no resource monitor of pressures is called {:?}", message.name);
        return cx.field("name", |cx| cx.refuse(text));
    };
    let share = |value: f64| (0.0..=1.0).contains(&value);
    match message.trigger_oneof {
        Some(xds::trigger::TriggerOneof::Threshold(xds::ThresholdTrigger { value })) if share(value) => {
            Some((at, Trigger::Threshold(value)))
        }
        Some(xds::trigger::TriggerOneof::Scaled(scaled)) => {
            let (from, to) = (scaled.scaling_threshold, scaled.saturation_threshold);
            if share(from) && share(to) && from < to {
                return Some((at, Trigger::Scaled { from, to }));
            }
            cx.field("scaled", |cx| cx.refuse("needs 0 <= scaling_threshold < saturation_threshold <= 1"))
        }
        Some(_) => cx.field("threshold", |cx| cx.refuse("needs a value from 0 to 1")),
        None => cx.refuse("one of threshold, scaled is required"),
    }
}
