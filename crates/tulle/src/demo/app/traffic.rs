//! The programs that make traffic. Each prints one line of JSON for every request it made, so that whoever started it
//! can measure.

use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Settings;
use super::call::{Answer, Call, Peer};

/// For so long only a quarter of the traffic is made.
const OPENING: Duration = Duration::from_millis(1500);

/// Requests of a burst that are on their way at one time.
const LANES: usize = 16;

/// Told when a request begins.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Begun {
    /// Its number.
    pub(crate) begun: u64,
}

/// One request, as its maker saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// The number under which its beginning was told.
    #[serde(default)]
    pub(crate) turn: u64,
    /// What was asked: `browse`, `cart`, `search`, `missing`, `charge`, `items`.
    pub(crate) kind: String,
    /// HTTP status; 0 = no answer.
    pub(crate) status: u16,
    /// How long it took, in milliseconds.
    pub(crate) ms: f64,
    /// The visitor's name; empty = none was sent.
    #[serde(default)]
    pub(crate) user: String,
    /// Version of the catalog that answered; empty = none.
    #[serde(default)]
    pub(crate) version: String,
    /// Instance of pricing that answered; empty = none.
    #[serde(default)]
    pub(crate) pricing: String,
    /// Why there was no answer, or what a failed answer said.
    #[serde(default)]
    pub(crate) error: String,
}

impl Seen {
    /// Whether the visitor got what was asked for; a page that does not exist is asked for on purpose.
    pub(crate) fn is_success(&self) -> bool {
        if self.kind == "missing" { self.status == 404 } else { self.status == 200 }
    }
}

/// An open-loop load: requests start by the clock, however slow the answers are. 70 % browse, 20 % fill the cart, 9 %
/// search, 1 % ask for a page that does not exist; 5 % are amy, 5 % are ben.
pub(super) async fn visitor(settings: Rc<Settings>) -> anyhow::Result<()> {
    let gateway = Peer::named("gateway", 8080, false)?;
    every(settings.rate, move || {
        let gateway = gateway.clone();
        async move {
            let (kind, path) = match rand::random_range(0..100) {
                0..70 => ("browse", "/"),
                70..90 => ("cart", "/cart"),
                90..99 => ("search", "/search?q=o"),
                _ => ("missing", "/no-such-page"),
            };
            let user = match rand::random_range(0..20) {
                0 => "amy",
                1 => "ben",
                _ => "",
            };
            let header = [("x-user", user)];
            let headers = if user.is_empty() { &[] } else { &header[..] };
            ask(kind, user, &gateway, Call::get(path).headers(headers)).await
        }
    })
    .await
}

/// Searches the catalog a given number of times, in a few lanes, each as fast as it is answered; every twentieth of the
/// requests is amy's.
pub(super) async fn burst(settings: Rc<Settings>) -> anyhow::Result<()> {
    let gateway = Peer::named("gateway", 8080, false)?;
    let lanes = (0..LANES).map(|lane| {
        let gateway = gateway.clone();
        let requests = settings.requests;
        async move {
            for turn in (lane..requests).step_by(LANES) {
                let amy = [("x-user", "amy")];
                let (user, headers) = if turn % 20 == 0 { ("amy", &amy[..]) } else { ("", &[][..]) };
                let seen = ask("search", user, &gateway, Call::get("/search?q=o").headers(headers)).await;
                tell(&Seen { turn: turn as u64, ..seen });
            }
        }
    });
    futures_util::future::join_all(lanes).await;
    Ok(())
}

/// Tries to charge somebody, which only the cart may.
pub(super) async fn intruder(settings: Rc<Settings>) -> anyhow::Result<()> {
    let payments = Peer::named("payments", 9090, true)?;
    every(settings.rate, move || {
        let payments = payments.clone();
        async move {
            let call = Call::post("/pay.Payments/Charge", Bytes::from_static(b"\0\0\0\0\x02\x10\x01"));
            ask("charge", "", &payments, call).await
        }
    })
    .await
}

/// Reads the catalog in clear text, from outside the mesh.
pub(super) async fn legacy(settings: Rc<Settings>) -> anyhow::Result<()> {
    let catalog = Peer::named("catalog", 8080, true)?;
    every(settings.rate, move || {
        let catalog = catalog.clone();
        async move { ask("items", "", &catalog, Call::get("/items")).await }
    })
    .await
}

/// Starts a request `rate` times a second, for ever.
async fn every<F, R>(rate: f64, request: F) -> anyhow::Result<()>
where
    F: Fn() -> R + 'static,
    R: Future<Output = Seen> + 'static,
{
    anyhow::ensure!(rate > 0.0 && rate <= 100_000.0, "a rate of {rate} requests per second cannot be kept");
    let mut clock = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let begin = Instant::now();
    for turn in 0_u64.. {
        clock.tick().await;
        // A shop does not open with a full house.
        if begin.elapsed() < OPENING && turn % 4 != 0 {
            continue;
        }
        tell(&Begun { begun: turn });
        let seen = request();
        tokio::task::spawn_local(async move { tell(&Seen { turn, ..seen.await }) });
    }
    Ok(())
}

async fn ask(kind: &str, user: &str, peer: &Peer, call: Call<'_>) -> Seen {
    let start = Instant::now();
    let answer = peer.call(call).await;
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    let seen = Seen {
        turn: 0,
        kind: kind.to_owned(),
        status: 0,
        ms,
        user: user.to_owned(),
        version: String::new(),
        pricing: String::new(),
        error: String::new(),
    };
    match answer {
        Ok(answer) => Seen {
            status: answer.status,
            version: answer.header("x-catalog-version").to_owned(),
            pricing: answer.header("x-pricing-instance").to_owned(),
            error: complaint(&answer),
            ..seen
        },
        Err(error) => Seen { error: format!("{error:#}"), ..seen },
    }
}

fn complaint(answer: &Answer) -> String {
    if answer.status < 400 {
        return String::new();
    }
    String::from_utf8_lossy(&answer.body).trim().chars().take(200).collect()
}

/// A reader that went away ends the program: there is nobody left to make traffic for.
fn tell(news: &impl Serialize) {
    let Ok(line) = serde_json::to_string(news) else { return };
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(0);
    }
}
