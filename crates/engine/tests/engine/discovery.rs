//! Filters that a manager only names: who waits for them, what is in force, what is refused.

use std::sync::Arc;
use std::time::Duration;

use engine::reply::Flags;
use engine::{Dice, Outcome, Store, Update};
use proto::envoy::config::core::v3::TypedExtensionConfig;
use proto::envoy::config::listener::v3::Listener;
use proto::type_url::{EXTENSION, LISTENER};

use crate::world::{Ask, World, cluster, listener, update};

const FAULT: &str = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";
const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const AUTHZ: &str = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
const ROUTES: &str = "
- name: all
  domains: ['*']
  routes:
    - {match: {prefix: /off}, route: {cluster: a}, typed_per_filter_config: {named: {'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}}}
    - {match: {prefix: /own}, route: {cluster: a}, typed_per_filter_config: {named: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 420, percentage: {numerator: 100}}}}}
    - {match: {prefix: /}, route: {cluster: a}}";

fn abort(status: u16) -> String {
    format!("{{'@type': {FAULT}, abort: {{http_status: {status}, percentage: {{numerator: 100}}}}}}")
}

fn filter(status: u16) -> Update {
    typed(&abort(status))
}

fn typed(config: &str) -> Update {
    update::<TypedExtensionConfig>(EXTENSION, "named", &format!("name: named\ntyped_config: {config}"))
}

fn gone() -> Update {
    Update { type_url: EXTENSION.into(), name: "named".into(), body: None }
}

/// A listener with a filter that is only named; `more` is about its source.
fn naming(types: &str, more: &str) -> Update {
    let source = "config_source: {ads: {}, initial_fetch_timeout: 3s}";
    let filters = format!("- {{name: named, config_discovery: {{{source}, type_urls: [{types}]{more}}}}}");
    update::<Listener>(LISTENER, "in", &listener(ROUTES, &filters, ""))
}

fn store(listener: Update) -> Store {
    let mut store = Store::new();
    good(&mut store, &[cluster("a", ""), listener]);
    store
}

fn good(store: &mut Store, updates: &[Update]) {
    for outcome in store.apply(updates) {
        outcome.unwrap_or_else(|error| panic!("{error}"));
    }
}

fn refusal(store: &mut Store, update: Update) -> String {
    store.apply(&[update]).remove(0).unwrap_err().to_string()
}

fn status(store: &Store, path: &str) -> u16 {
    let world = World { plan: store.plan() };
    let (decision, _) = world.decide(&Ask::new(&format!("GET a{path}")), &mut Dice::new(1));
    match decision.outcome {
        Outcome::Forward(_) => 200,
        Outcome::Reply(reply) => {
            assert_eq!(reply.status == 500, reply.flags == Flags::NO_FILTER_CONFIG);
            reply.status.as_u16()
        }
    }
}

#[test]
fn a_listener_waits_for_its_filter_and_updates_leave_it_alone() {
    let mut store = store(naming(FAULT, ""));
    assert_eq!(store.wanted_filters(), [Arc::from("named")]);
    assert_eq!(store.warming(), [(Arc::from(EXTENSION), Arc::from("named"))]);
    assert_eq!(store.patience(EXTENSION, "named"), Some(Some(Duration::from_secs(3))));
    assert_eq!(store.patience(LISTENER, "in"), None);
    assert!(store.plan().listener("in").is_none());
    good(&mut store, &[filter(401)]);
    assert!(store.warming().is_empty());
    assert_eq!((status(&store, "/"), status(&store, "/off"), status(&store, "/own")), (401, 200, 420));
    let before = store.plan().listener("in").expect("listener").clone();
    good(&mut store, &[filter(402)]);
    assert_eq!(status(&store, "/"), 402);
    assert!(Arc::ptr_eq(&before, store.plan().listener("in").expect("listener")));
    // What goes leaves nothing, and the listener does not wait again.
    good(&mut store, &[gone()]);
    assert_eq!((status(&store, "/"), status(&store, "/off"), status(&store, "/own")), (500, 200, 500));
    assert!(store.warming().is_empty());
    good(&mut store, &[filter(402)]);
    assert_eq!(status(&store, "/"), 402);
}

#[test]
fn what_was_saved_is_in_force_at_once() {
    let mut store = Store::new();
    good(&mut store, &[naming(FAULT, ""), filter(401), cluster("a", "")]);
    assert!(store.warming().is_empty());
    assert_eq!(status(&store, "/"), 401);
}

#[test]
fn defaults_hold_until_something_comes() {
    let default = format!(", default_config: {}", abort(410));
    let mut waiting = store(naming(FAULT, &default));
    assert!(waiting.plan().listener("in").is_none());
    waiting.release(&[(EXTENSION.into(), "named".into())]);
    assert_eq!(status(&waiting, "/"), 410);
    let mut at_once = store(naming(FAULT, &format!("{default}, apply_default_config_without_warming: true")));
    assert!(at_once.warming().is_empty());
    assert_eq!(status(&at_once, "/"), 410);
    for store in [&mut waiting, &mut at_once] {
        good(store, &[filter(401)]);
        assert_eq!(status(store, "/"), 401);
        good(store, &[gone()]);
        assert_eq!(status(store, "/"), 410);
    }
}

#[test]
fn a_refusal_ends_the_wait_and_the_last_good_one_stays() {
    let mut store = store(naming(FAULT, ""));
    let text = refusal(&mut store, typed(&format!("{{'@type': {RBAC}}}")));
    let wanted = "TypedExtensionConfig \"named\": typed_config: envoy.extensions.filters.http.rbac.v3.RBAC is not among \
                  type_urls (envoy.extensions.filters.http.fault.v3.HTTPFault)";
    assert_eq!(text, wanted);
    assert_eq!(status(&store, "/"), 500);
    good(&mut store, &[filter(401)]);
    for (bad, wanted) in [
        (typed(&abort(99)), "typed_config.abort.http_status: must be from 200 to 599"),
        (
            typed("{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}"),
            "typed_config: the router must be the last filter, and stand in the listener itself",
        ),
        (
            typed("{'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}"),
            "typed_config: the type \"type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua\" is not implemented",
        ),
        (update::<TypedExtensionConfig>(EXTENSION, "named", "name: named"), "typed_config: is required"),
        (
            update::<TypedExtensionConfig>(EXTENSION, "named", &format!("name: x\ntyped_config: {}", abort(500))),
            "the resource calls itself \"x\"",
        ),
    ] {
        let text = refusal(&mut store, bad);
        assert!(text.contains(wanted), "{text}");
        assert_eq!(status(&store, "/"), 401);
    }
    for length in 0..40_u8 {
        let body = (0..length).map(|at| at.wrapping_mul(71) ^ length).collect::<Vec<_>>();
        let _ = store.apply(&[Update { type_url: EXTENSION.into(), name: "named".into(), body: Some(body.into()) }]);
    }
}

#[test]
fn a_listener_that_takes_other_types_has_its_default() {
    let mut store = store(naming(FAULT, ""));
    good(&mut store, &[filter(401)]);
    // Named anew with other types: what came before is not for it.
    good(&mut store, &[naming(RBAC, "")]);
    assert_eq!(status(&store, "/"), 500);
    good(&mut store, &[typed(&format!("{{'@type': {RBAC}}}"))]);
    assert_eq!(status(&store, "/"), 200);
    assert!(refusal(&mut store, filter(401)).contains("is not among type_urls"));
    // Nobody names it any more: it is forgotten, but for those who are not at their end, and the next one waits.
    let old = World { plan: store.plan() }.manager();
    good(&mut store, &[Update { type_url: LISTENER.into(), name: "in".into(), body: None }]);
    assert!(store.wanted_filters().is_empty());
    let kind = |store: &Store| format!("{:?}", store.plan().kind_of(&old.filters[0]));
    assert!(kind(&store).starts_with("Rbac"));
    good(&mut store, &[cluster("b", "")]);
    assert!(kind(&store).starts_with("Rbac"));
    drop(old);
    good(&mut store, &[naming(RBAC, "")]);
    assert_eq!(store.warming(), [(Arc::from(EXTENSION), Arc::from("named"))]);
}

#[test]
fn what_a_filter_may_turn_out_to_be_is_thought_of() {
    let manager = |types: &str| {
        let mut store = store(naming(types, ""));
        store.stop_waiting();
        World { plan: store.plan() }.manager()
    };
    assert!(manager(FAULT).asks() && !manager(FAULT).tells_certificate());
    assert!(manager(AUTHZ).tells_certificate());
}

#[test]
fn sources_that_cannot_work_are_refused_by_path() {
    let place = "filter_chains[0].filters[0].typed_config.http_filters[0].config_discovery";
    let lua = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua";
    for (listener, wanted) in [
        (naming("", ""), ".type_urls: at least one is required"),
        (
            naming(&format!("{FAULT}, {lua}"), ""),
            ".type_urls[1]: the HTTP filter envoy.extensions.filters.http.lua.v3.Lua is not implemented",
        ),
        (
            naming(FAULT, ", apply_default_config_without_warming: true"),
            ".apply_default_config_without_warming: needs default_config",
        ),
        (
            naming(RBAC, &format!(", default_config: {}", abort(410))),
            ".default_config: envoy.extensions.filters.http.fault.v3.HTTPFault is not among type_urls",
        ),
        (
            naming(FAULT, &format!(", default_config: {}", abort(99))),
            ".default_config.abort.http_status: must be from 200 to 599",
        ),
    ] {
        let text = refusal(&mut Store::new(), listener);
        assert!(text.contains(&format!("{place}{wanted}")), "{text}");
    }
}
