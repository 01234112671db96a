//! `tulle token create|list|revoke`: join tokens, straight in the authority's directory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::PrivateError;
use identity::audit::Audit;
use identity::ca::{self, CaError};
use identity::reach::Server;
use identity::token::{Grant, JoinToken, TokenError, TokenInfo, TokenState, TokenStore};
use model::SpiffeId;
use serde_json::json;

use super::duration;
use crate::cli::Global;
use crate::output::{self, Exit};

/// Make, list and revoke the tokens with which workloads join
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tulle token create --workload cart -n shop --service-account cart --server 10.0.0.1:15012
  tulle token list
  tulle token revoke 3f1c9a0b5d7e2468")]
pub(crate) struct Args {
    /// The certificate authority's directory (as of `tulle control`) [default: ~/.local/state/tulle/ca, root:
    /// /var/lib/tulle/ca]
    #[arg(long, global = true, value_name = "DIR")]
    ca_dir: Option<PathBuf>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Create(CreateArgs),
    /// List tokens that live or ended less than a week ago; never their secrets
    #[command(visible_alias = "ls", after_help = "Examples:\n  tulle token list\n  tulle token list -o json")]
    List,
    /// Make tokens unusable; certificates they already gave live until their end
    #[command(after_help = "Examples:\n  tulle token revoke 3f1c9a0b5d7e2468\n  tulle token revoke ID1 ID2")]
    Revoke {
        /// Tokens by their id, as `list` shows it
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

/// Make a token and write it into a new file of mode 0600
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tulle token create --workload cart -n shop --service-account cart
  tulle token create --workload db -n shop --ttl 1h --server unix:/run/tulle/xds.sock --out /run/db.token")]
struct CreateArgs {
    /// Name of the workload that will join
    #[arg(long, value_name = "NAME")]
    workload: String,
    /// Its namespace
    #[arg(short, long, default_value = "default", value_name = "NAMESPACE")]
    namespace: String,
    /// Its service account: with the namespace it is the identity
    #[arg(long, default_value = "default", value_name = "NAME")]
    service_account: String,
    /// How long it can be used: 30s, 10m, 2h; at most 7 days
    #[arg(long, default_value = "10m", value_parser = duration::parse, value_name = "TIME")]
    ttl: Duration,
    /// Where the workload finds the control plane: HOST:PORT or unix:PATH
    #[arg(long, default_value = "127.0.0.1:15012", value_name = "ADDR")]
    server: Server,
    /// The file to write; it must not exist [default: WORKLOAD.NAMESPACE.token]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    let ca_dir = args.ca_dir.unwrap_or_else(ca::default_directory);
    if !ca_dir.is_dir() {
        return fail_no_authority(&ca_dir);
    }
    let audit = match Audit::appending_to(&ca_dir.join("audit.log")) {
        Ok(audit) => Arc::new(audit),
        Err(error) => return fail_private(&error),
    };
    let store = match TokenStore::open(&ca_dir, audit) {
        Ok(store) => store,
        Err(error) => return fail_private(&error),
    };
    let now = SystemTime::now();
    match args.what {
        What::Create(create) => self::create(&create, &ca_dir, &store, args.output, global, now),
        What::List => list(&store, args.output, now),
        What::Revoke { ids } => revoke(&store, &ids, args.output, now),
    }
}

fn create(
    args: &CreateArgs,
    ca_dir: &std::path::Path,
    store: &TokenStore,
    format: Format,
    global: &Global,
    now: SystemTime,
) -> Exit {
    let (trust_domain, ca_sha256) = match (ca::trust_domain_in(ca_dir), ca::root_hash_in(ca_dir)) {
        (Ok(trust_domain), Ok(hash)) => (trust_domain, hash),
        (Err(error), _) | (_, Err(error)) => return fail_ca(&error, ca_dir),
    };
    let identity = match SpiffeId::new(&trust_domain, &args.namespace, &args.service_account) {
        Ok(identity) => identity,
        Err(error) => return output::fail(Exit::Usage, error, None),
    };
    let default = || PathBuf::from(format!("{}.{}.token", args.workload, args.namespace));
    let path = args.out.clone().unwrap_or_else(default);
    if path.exists() {
        let next = "remove it, or choose another name with --out";
        return output::fail(Exit::Conflict, format!("{} exists already", path.display()), Some(next));
    }
    let grant = Grant { identity: identity.clone(), workload: args.workload.clone(), ttl: args.ttl };
    let (secret, info) = match store.create(&grant, now) {
        Ok(made) => made,
        Err(error) => return fail_token(&error),
    };
    let server = args.server.to_string();
    let token =
        JoinToken { secret, identity, workload: args.workload.clone(), server, ca_sha256, expires: info.expires };
    if let Err(error) = token.write(&path) {
        // Nobody will ever hold this one.
        let _ = store.revoke(&info.id, now);
        return fail_private(&error);
    }
    match format {
        Format::Json => {
            let mut value = as_json(&info);
            value["file"] = json!(path);
            output::print(&format!("{value}\n"));
        }
        Format::Text => output::print(&format!("{}\n", path.display())),
    }
    if !global.quiet && format == Format::Text {
        eprintln!("token {} for {} until {}", info.id, info.identity, time(info.expires));
        eprintln!(" next: give {} to the workload, then: tulle agent --token {0}", path.display());
    }
    Exit::Done
}

fn list(store: &TokenStore, format: Format, now: SystemTime) -> Exit {
    let tokens = match store.list(now) {
        Ok(tokens) => tokens,
        Err(error) => return fail_token(&error),
    };
    if format == Format::Json {
        let values: Vec<_> = tokens.iter().map(as_json).collect();
        output::print(&format!("{}\n", json!({ "tokens": values })));
        return Exit::Done;
    }
    let head = ["ID", "STATE", "WORKLOAD", "IDENTITY", "ENDS"].map(str::to_owned);
    let rows = tokens.iter().map(|token| {
        let identity = token.identity.to_string();
        [token.id.clone(), state(token.state).to_owned(), token.workload.clone(), identity, time(token.expires)]
    });
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(rows).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    output::print(&text);
    Exit::Done
}

fn revoke(store: &TokenStore, ids: &[String], format: Format, now: SystemTime) -> Exit {
    for id in ids {
        match store.revoke(id, now) {
            Ok(info) if format == Format::Json => output::print(&format!("{}\n", as_json(&info))),
            Ok(info) => output::print(&format!("{} revoked\n", info.id)),
            Err(error) => return fail_token(&error),
        }
    }
    Exit::Done
}

fn as_json(info: &TokenInfo) -> serde_json::Value {
    json!({
        "id": info.id,
        "state": state(info.state),
        "workload": info.workload,
        "identity": info.identity.to_string(),
        "created": time(info.created),
        "ends": time(info.expires),
    })
}

fn state(state: TokenState) -> &'static str {
    match state {
        TokenState::Unused => "unused",
        TokenState::Used => "used",
        TokenState::Expired => "expired",
        TokenState::Revoked => "revoked",
    }
}

fn time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "never".to_owned(), |t| t.to_string())
}

fn fail_token(error: &TokenError) -> Exit {
    match error {
        TokenError::Private(error) => fail_private(error),
        TokenError::Ttl(_) | TokenError::Reserved(_) => output::fail(Exit::Usage, error, None),
        TokenError::NoSuch(_) => output::fail(Exit::No, error, Some("see the ids with: tulle token list")),
        TokenError::Damaged { .. } | TokenError::Random => output::fail(Exit::Invalid, error, None),
    }
}

fn fail_ca(error: &CaError, ca_dir: &std::path::Path) -> Exit {
    match error {
        CaError::Private(error) if error.is_not_found() => fail_no_authority(ca_dir),
        CaError::Private(error) => fail_private(error),
        other => output::fail(Exit::Invalid, other, None),
    }
}

fn fail_no_authority(ca_dir: &std::path::Path) -> Exit {
    let what = format!("there is no certificate authority in {}", ca_dir.display());
    let next = "start `tulle control` first (it makes one), or name its directory with --ca-dir";
    output::fail(Exit::Unreachable, what, Some(next))
}

/// Exit codes for files: not permitted, already there, or not usable.
pub(crate) fn fail_private(error: &PrivateError) -> Exit {
    use std::io::ErrorKind;
    let exit = match error {
        PrivateError::Io { source, .. } if source.kind() == ErrorKind::AlreadyExists => Exit::Conflict,
        PrivateError::Io { source, .. } if source.kind() == ErrorKind::AddrInUse => Exit::Conflict,
        PrivateError::Io { source, .. } if source.kind() == ErrorKind::NotFound => Exit::Invalid,
        PrivateError::Io { .. } | PrivateError::Mode { .. } | PrivateError::Owner { .. } => Exit::Forbidden,
        PrivateError::TooLarge(_) => Exit::Invalid,
    };
    output::fail(exit, error, None)
}
