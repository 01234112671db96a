//! The filter `header_mutation` and what routes say of it.

use proto::envoy::config::common::mutation_rules::v3::{HeaderMutation, header_mutation::Action};
use proto::envoy::config::core::v3::{KeyValueAppend, KeyValueMutation};
use proto::envoy::extensions::filters::http::header_mutation::v3 as xds;
use proto::google::protobuf::{Any, value::Kind};

use super::Context;
use super::route::removable;
use super::route_action::{append_action, header_addition};
use super::value::{string, template};
use crate::mutation::{HeaderMutationFilter, Mutation, Mutations, QueryMutation};

pub(super) const FILTER: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
pub(super) const PER_ROUTE: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute";

pub(super) fn filter(cx: &mut Context<'_>, any: &Any) -> Option<HeaderMutationFilter> {
    let message: xds::HeaderMutation = cx.unpack(any)?;
    Some(HeaderMutationFilter {
        own: cx.optional("mutations", message.mutations.as_ref(), mutations).unwrap_or_default(),
        most_specific_wins: message.most_specific_header_mutations_wins,
    })
}

pub(super) fn route(cx: &mut Context<'_>, any: &Any) -> Option<Mutations> {
    let message: xds::HeaderMutationPerRoute = cx.unpack(any)?;
    Some(cx.optional("mutations", message.mutations.as_ref(), mutations).unwrap_or_default())
}

fn mutations(cx: &mut Context<'_>, message: &xds::Mutations) -> Option<Mutations> {
    Some(Mutations {
        request: cx.list("request_mutations", &message.request_mutations, mutation),
        query: cx.list("query_parameter_mutations", &message.query_parameter_mutations, query),
        response: cx.list("response_mutations", &message.response_mutations, mutation),
        request_trailers: cx.list("request_trailers_mutations", &message.request_trailers_mutations, mutation),
        response_trailers: cx.list("response_trailers_mutations", &message.response_trailers_mutations, mutation),
    })
}

fn mutation(cx: &mut Context<'_>, message: &HeaderMutation) -> Option<Mutation> {
    match &message.action {
        Some(Action::Remove(name)) => cx.field("remove", |cx| removable(cx, name)).map(Mutation::Remove),
        Some(Action::Append(addition)) => cx.field("append", |cx| header_addition(cx, addition)).map(Mutation::Put),
        Some(Action::RemoveOnMatch(rule)) => cx.field("remove_on_match", |cx| {
            cx.required("key_matcher", rule.key_matcher.as_ref(), string).map(Mutation::RemoveMatching)
        }),
        None => cx.refuse("remove, append or remove_on_match is required"),
    }
}

fn query(cx: &mut Context<'_>, message: &KeyValueMutation) -> Option<QueryMutation> {
    match (&message.append, message.remove.as_str()) {
        (Some(_), name) if !name.is_empty() => cx.refuse("only one of append and remove can be set"),
        (Some(addition), _) => cx.field("append", |cx| put(cx, addition)),
        (None, "") => cx.refuse("append or remove is required"),
        (None, name) => Some(QueryMutation::Remove(cx.share(name))),
    }
}

fn put(cx: &mut Context<'_>, message: &KeyValueAppend) -> Option<QueryMutation> {
    cx.required("record", message.record.as_ref(), |cx, record| {
        let name = cx.needed("key", &record.key)?;
        let value = match record.value.as_ref().and_then(|value| value.kind.as_ref()) {
            Some(Kind::StringValue(text)) => cx.field("value", |cx| template(cx, text))?,
            _ => return cx.field("value", |cx| cx.refuse("must be a string")),
        };
        Some(QueryMutation::Put { name, value, action: append_action(message.action) })
    })
}
