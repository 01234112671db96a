//! `tulle explain`: what a diagnostic code means.

use std::fmt::Write;

use model::Code;
use resources::codes::{self, Explanation};
use serde_json::json;

use crate::cli::Global;
use crate::output::{Exit, fail, print};

/// Width of the text.
const WIDTH: usize = 96;

/// Explain a diagnostic code, or the way of a request
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  tulle explain TL0107
  tulle explain --list
  tulle explain TL0502 -o json
  tulle explain request --from web --to http://catalog/items -H x-user=amy")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// The code, as a finding prints it
    #[arg(value_name = "CODE", required_unless_present = "list", value_parser = code)]
    code: Option<Code>,
    /// List all codes with their titles
    #[arg(long, conflicts_with = "code")]
    list: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Request(Box<super::explain_request::Args>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// As JSON
    Json,
}

/// Reads `TL0107`, `tl107` or `107`.
pub(crate) fn code(text: &str) -> Result<Code, String> {
    let digits = text.strip_prefix("TL").or_else(|| text.strip_prefix("tl")).unwrap_or(text);
    digits.parse().map(Code).map_err(|_| format!("`{text}` is no diagnostic code; they look like TL0107"))
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    if let Some(What::Request(request)) = &args.what {
        return super::explain_request::run(request, global);
    }
    let Some(code) = args.code else {
        print(&match args.output {
            Output::Text => list(),
            Output::Json => format!("{:#}\n", json!(codes::TABLE.iter().map(document).collect::<Vec<_>>())),
        });
        return Exit::Done;
    };
    let Some(entry) = codes::explanation(code) else {
        return fail(Exit::Usage, format!("there is no code {code}"), Some("`tulle explain --list` names all of them"));
    };
    print(&match args.output {
        Output::Text => page(entry),
        Output::Json => format!("{:#}\n", document(entry)),
    });
    Exit::Done
}

fn list() -> String {
    codes::TABLE.iter().fold(String::new(), |mut text, entry| {
        let _ = writeln!(text, "{}  {}", entry.code, entry.title);
        text
    })
}

fn page(entry: &Explanation) -> String {
    let mut page = format!("{}: {}\n\n{}\nFor example:\n\n", entry.code, entry.title, wrap(entry.text));
    for line in entry.example.lines() {
        let _ = writeln!(page, "    {line}");
    }
    page
}

fn wrap(text: &str) -> String {
    let mut wrapped = String::new();
    let mut width = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > WIDTH {
            wrapped.push('\n');
            width = 0;
        } else if width > 0 {
            wrapped.push(' ');
            width += 1;
        }
        wrapped.push_str(word);
        width += length;
    }
    wrapped.push('\n');
    wrapped
}

fn document(entry: &Explanation) -> serde_json::Value {
    json!({
        "code": entry.code.to_string(),
        "title": entry.title,
        "text": entry.text,
        "example": entry.example,
    })
}
