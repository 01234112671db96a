//! Logs of the process itself: logfmt or JSON on standard error, levels per module, changeable while it runs.

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::OnceLock;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// `time=... level=info target=... msg="..." key=value`: the default.
    #[default]
    Logfmt,
    /// One JSON object per line with the same keys.
    Json,
}

impl FromStr for Style {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "logfmt" | "text" => Ok(Self::Logfmt),
            "json" => Ok(Self::Json),
            other => Err(format!("log format `{other}`: logfmt or json")),
        }
    }
}

/// Changes levels while the process runs.
#[derive(Debug)]
pub struct Levels {
    reload: reload::Handle<EnvFilter, tracing_subscriber::Registry>,
    state: Mutex<Directives>,
}

/// A default level and exceptions by module.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Directives {
    all: String,
    modules: Vec<(String, String)>,
}

/// Why a level was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// No such level.
    #[error("`{0}` is no level: trace, debug, info, warning, error, critical or off")]
    Level(String),
    /// Not `MODULE:LEVEL`.
    #[error("`{0}` is not MODULE:LEVEL")]
    Pair(String),
    /// The subscriber is gone.
    #[error("the process' log cannot be changed any more")]
    Gone,
}

static LEVELS: OnceLock<Levels> = OnceLock::new();

/// Sets up the process' log on standard error. `levels` is as in `RUST_LOG` (`info,proxy=debug`). A second call
/// changes nothing.
///
/// # Errors
/// Says what is wrong with `levels`.
pub fn init(levels: &str, style: Style) -> Result<(), LevelError> {
    let directives = Directives::parse(levels)?;
    let (filter, reload) = reload::Layer::new(directives.filter());
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .event_format(Line(style))
        .with_filter(filter);
    if tracing_subscriber::registry().with(layer).try_init().is_ok() {
        // Only the first caller comes here.
        let _ = LEVELS.set(Levels { reload, state: Mutex::new(directives) });
    }
    Ok(())
}

/// Whether people rather than programs read standard error.
pub fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// The levels of this process; `None` before [`init`].
pub fn levels() -> Option<&'static Levels> {
    LEVELS.get()
}

impl Levels {
    /// Changes the level of everything; exceptions go.
    ///
    /// # Errors
    /// When there is no such level.
    pub fn set_all(&self, level: &str) -> Result<(), LevelError> {
        let all = own_level(level)?.to_owned();
        self.change(Directives { all, modules: Vec::new() })
    }

    /// Changes the level of one module (`proxy`, `xds::client`).
    ///
    /// # Errors
    /// When there is no such level.
    pub fn set(&self, module: &str, level: &str) -> Result<(), LevelError> {
        let level = own_level(level)?.to_owned();
        let mut next = self.state.lock().clone();
        next.modules.retain(|(held, _)| held != module);
        next.modules.push((module.to_owned(), level));
        next.modules.sort();
        self.change(next)
    }

    /// The levels in force: `all` first.
    pub fn list(&self) -> Vec<(String, String)> {
        let state = self.state.lock();
        let mut list = vec![("all".to_owned(), envoy_level(&state.all).to_owned())];
        list.extend(state.modules.iter().map(|(module, level)| (module.clone(), envoy_level(level).to_owned())));
        list
    }

    fn change(&self, next: Directives) -> Result<(), LevelError> {
        self.reload.reload(next.filter()).map_err(|_| LevelError::Gone)?;
        *self.state.lock() = next;
        Ok(())
    }
}

impl Directives {
    fn parse(text: &str) -> Result<Self, LevelError> {
        let mut directives = Self { all: "info".to_owned(), modules: Vec::new() };
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word.rsplit_once(['=', ':']).filter(|(module, _)| !module.is_empty()) {
                Some((module, level)) => directives.modules.push((module.to_owned(), own_level(level)?.to_owned())),
                None => own_level(word)?.clone_into(&mut directives.all),
            }
        }
        Ok(directives)
    }

    fn filter(&self) -> EnvFilter {
        let mut text = self.all.clone();
        for (module, level) in &self.modules {
            text.push_str(&format!(",{module}={level}"));
        }
        EnvFilter::builder().parse_lossy(text)
    }
}

/// tracing's name of a level that Envoy or tracing knows.
fn own_level(level: &str) -> Result<&'static str, LevelError> {
    Ok(match level {
        "trace" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warn" | "warning" => "warn",
        "error" | "critical" => "error",
        "off" => "off",
        other => return Err(LevelError::Level(other.to_owned())),
    })
}

fn envoy_level(level: &str) -> &str {
    if level == "warn" { "warning" } else { level }
}

/// Writes one event as one line.
struct Line(Style);

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = envoy_level(match *metadata.level() {
            tracing::Level::TRACE => "trace",
            tracing::Level::DEBUG => "debug",
            tracing::Level::INFO => "info",
            tracing::Level::WARN => "warn",
            tracing::Level::ERROR => "error",
        });
        let text = line(self.0, &now(), level, metadata.target(), fields);
        writeln!(writer, "{text}")
    }
}

fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut out = Vec::with_capacity(24);
    crate::accesslog::clock::write_default(since.as_secs(), since.subsec_nanos(), &mut out);
    String::from_utf8(out).unwrap_or_default()
}

fn line(style: Style, time: &str, level: &str, target: &str, fields: Fields) -> String {
    let mut pairs: Vec<(&str, serde_json::Value)> =
        vec![("time", time.into()), ("level", level.into()), ("target", target.into())];
    if !fields.message.is_empty() {
        pairs.push(("msg", fields.message.into()));
    }
    pairs.extend(fields.others);
    match style {
        Style::Json => {
            let object: serde_json::Map<_, _> = pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            serde_json::Value::Object(object).to_string()
        }
        Style::Logfmt => {
            let words: Vec<String> =
                pairs.into_iter().map(|(key, value)| format!("{key}={}", logfmt(&value))).collect();
            words.join(" ")
        }
    }
}

fn logfmt(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) if !text.is_empty() && text.chars().all(|c| !needs_quotes(c)) => text.clone(),
        value => value.to_string(),
    }
}

fn needs_quotes(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, '"' | '=' | '\\')
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, serde_json::Value)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.others.push((field.name(), format!("{value:?}").into()));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.others.push((field.name(), value.into()));
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.others.push((field.name(), value.into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.others.push((field.name(), value.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields {
        Fields {
            message: "listener \"in\" is gone".to_owned(),
            others: vec![("event", "listener-removed".into()), ("port", 8080.into()), ("note", "a=b\nc".into())],
        }
    }

    #[test]
    fn one_line_in_either_style() {
        assert_eq!(
            line(Style::Logfmt, "2026-11-21T10:32:50.346Z", "info", "proxy::door", fields()),
            r#"time=2026-11-21T10:32:50.346Z level=info target=proxy::door msg="listener \"in\" is gone" event=listener-removed port=8080 note="a=b\nc""#
        );
        assert_eq!(
            line(Style::Json, "t", "warning", "proxy", fields()),
            r#"{"time":"t","level":"warning","target":"proxy","msg":"listener \"in\" is gone","event":"listener-removed","port":8080,"note":"a=b\nc"}"#
        );
    }

    #[test]
    fn levels_are_read() {
        let directives = Directives::parse("warning, proxy=debug,xds::client:trace").unwrap();
        assert_eq!(directives.all, "warn");
        assert_eq!(directives.filter().to_string().split(',').count(), 3);
        assert_eq!(Directives::parse("loud"), Err(LevelError::Level("loud".to_owned())));
    }
}
