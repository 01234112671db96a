//! `tulle apply`.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use control::api::{ApplyRequest, ChangeAnswer, Waited};
use model::Severity;
use resources::ParseOptions;

use super::connection::{Connection, ask};
use crate::cli::Global;
use crate::output::{self, Exit, fail};

/// Declare objects in the control plane's store
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tulle apply -f catalog.yaml --wait\n  cat catalog.yaml | tulle apply -f - --dry-run"
)]
pub(crate) struct Args {
    /// File or directory of YAML, or - for standard input; may be repeated
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short, long, value_name = "NAMESPACE", env = "TULLE_NAMESPACE", default_value = "default")]
    namespace: String,
    /// Return when every proxy that it concerns has acknowledged it, at the latest after so long
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "30s", require_equals = true, value_parser = super::duration::parse)]
    wait: Option<Duration>,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    match apply(&args, global) {
        Ok(exit) | Err(exit) => exit,
    }
}

fn apply(args: &Args, global: &Global) -> Result<Exit, Exit> {
    let texts = read_all(&args.files)?;
    check(&texts, &args.namespace, global)?;
    let file = texts.first().map(|(name, _)| name.clone());
    let manifest: Vec<String> = texts.into_iter().map(|(_, text)| text).collect();
    let request = ApplyRequest {
        manifest: manifest.join("\n---\n"),
        file,
        namespace: Some(args.namespace.clone()),
        dry_run: args.dry_run,
        wait_ms: args.wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
    };
    let client = args.connection.client()?;
    let answer = ask(client.apply(&request))?;
    match args.output {
        Format::Json => output::print(&format!("{}\n", serde_json::to_string_pretty(&answer).unwrap_or_default())),
        Format::Text => output::print(&text(&answer, args.dry_run)),
    }
    Ok(answer.wait.as_ref().map_or(Exit::Done, outcome))
}

/// Reads the files, with their names.
pub(super) fn read_all(files: &[PathBuf]) -> Result<Vec<(String, String)>, Exit> {
    let mut texts = Vec::new();
    for path in files {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            let read = std::io::stdin().lock().read_to_string(&mut text);
            read.map_err(|error| fail(Exit::Invalid, format!("cannot read standard input: {error}"), None))?;
            texts.push(("standard input".to_owned(), text));
            continue;
        }
        let found = universal::directory::read(std::slice::from_ref(path));
        let found = found.map_err(|error| fail(Exit::Invalid, format!("cannot read {error}"), None))?;
        texts.extend(found.into_iter().filter_map(|change| Some((change.file.to_string(), change.text?.to_string()))));
    }
    Ok(texts)
}

/// Draws what is wrong with its lines, before anything is sent.
fn check(texts: &[(String, String)], namespace: &str, global: &Global) -> Result<(), Exit> {
    let mut errors = 0;
    for (name, text) in texts {
        let options = ParseOptions { default_namespace: namespace.to_owned(), ..ParseOptions::of_file(name) };
        for diagnostic in resources::parse(text, &options).diagnostics {
            if diagnostic.severity == Severity::Error {
                errors += 1;
            } else if global.quiet {
                continue;
            }
            eprint!("{}", resources::render(&diagnostic, Some(text), global.color.stderr()));
        }
    }
    match errors {
        0 => Ok(()),
        1 => Err(fail(Exit::Invalid, "nothing was applied: there is 1 error", None)),
        count => Err(fail(Exit::Invalid, format!("nothing was applied: there are {count} errors"), None)),
    }
}

/// What changed, line by line, and how the proxies took it.
pub(super) fn text(answer: &ChangeAnswer, dry_run: bool) -> String {
    let mut text = String::new();
    for change in &answer.changes {
        let name = if change.namespace.is_empty() {
            change.name.clone()
        } else {
            format!("{}/{}", change.namespace, change.name)
        };
        let dry = if dry_run { " (dry run)" } else { "" };
        text.push_str(&format!("{} {name} {}{dry}\n", change.kind, change.action));
    }
    if dry_run {
        return text;
    }
    match &answer.wait {
        None => text.push_str(&format!("revision {}\n", answer.revision)),
        Some(wait) => text.push_str(&waited(answer.revision, wait)),
    }
    text
}

fn waited(revision: u64, wait: &Waited) -> String {
    let all = wait.acknowledged + wait.missing.len();
    if all == 0 {
        return format!("revision {revision} changes no connected proxy\n");
    }
    let mut text = format!("revision {revision} is on {} of {all} proxies", wait.acknowledged);
    if let (Some(p50), Some(p99)) = (wait.p50_ms, wait.p99_ms) {
        text.push_str(&format!(" (p50 {p50:.0} ms, p99 {p99:.0} ms)"));
    }
    text.push('\n');
    for missing in &wait.missing {
        text.push_str(&format!("  not on {}: {}\n", missing.proxy, missing.reason));
    }
    text
}

/// 0 when all have it, 1 when one refused, 3 when one did not answer in time.
pub(super) fn outcome(wait: &Waited) -> Exit {
    if wait.missing.is_empty() {
        Exit::Done
    } else if wait.missing.iter().all(|missing| missing.reason.starts_with("it refused")) {
        Exit::No
    } else {
        Exit::Unreachable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::api::{Changed, Missing};

    fn changed(kind: &str, namespace: &str, name: &str, action: &str) -> Changed {
        let [kind, namespace, name, action] = [kind, namespace, name, action].map(str::to_owned);
        Changed { kind, namespace, name, action }
    }

    #[test]
    fn says_who_has_it_and_who_has_not() {
        let missing = Missing {
            proxy: "sidecar~10.0.0.3~cart-1.shop~shop.svc.cluster.local".to_owned(),
            reason: "it did not answer yet".to_owned(),
        };
        let wait = Waited { acknowledged: 11, missing: vec![missing], p50_ms: Some(41.2), p99_ms: Some(148.0) };
        let changes = vec![
            changed("VirtualService", "shop", "catalog", "configured"),
            changed("Namespace", "", "shop", "unchanged"),
        ];
        let answer = ChangeAnswer { revision: 7, changes, findings: Vec::new(), wait: Some(wait.clone()) };
        assert_eq!(
            text(&answer, false),
            "VirtualService shop/catalog configured\n\
             Namespace shop unchanged\n\
             revision 7 is on 11 of 12 proxies (p50 41 ms, p99 148 ms)\n  \
             not on sidecar~10.0.0.3~cart-1.shop~shop.svc.cluster.local: it did not answer yet\n"
        );
        assert_eq!(outcome(&wait), Exit::Unreachable);
        assert_eq!(
            text(&ChangeAnswer { wait: None, ..answer }, true),
            "VirtualService shop/catalog configured (dry run)\nNamespace shop unchanged (dry run)\n"
        );
    }

    #[test]
    fn a_refusal_is_an_answer() {
        let missing = Missing { proxy: "a".to_owned(), reason: "it refused l: bad".to_owned() };
        let wait = Waited { missing: vec![missing], ..Waited::default() };
        assert_eq!(outcome(&wait), Exit::No);
        assert_eq!(waited(3, &Waited::default()), "revision 3 changes no connected proxy\n");
    }
}
