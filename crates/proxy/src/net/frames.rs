//! A look at the frames of an HTTP/2 peer, to notice one that keeps us busy without asking for anything.
//!
//! h2 bounds what a peer makes us hold: streams, header lists, reset streams, empty and tiny DATA frames. It does not
//! bound frames that only cost time: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, resets of streams that were served.
//! Those draw on an allowance here, which honest use keeps filling: requests, bodies, bytes that we sent, and time.

use std::time::{Duration, Instant};

/// Payload bytes are passed over; only the nine bytes of each head are looked at (RFC 9113 section 4.1).
const HEAD: usize = 9;
/// But for the four bytes behind that of a WINDOW_UPDATE.
const WHOLE: usize = HEAD + 4;
/// How a WINDOW_UPDATE begins (section 6.9): its length and its kind.
const WINDOW_UPDATE: [u8; 4] = [0, 0, 4, 8];
/// Flags of DATA, HEADERS and CONTINUATION (sections 6.1, 6.2, 6.10).
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The most that a peer can save up.
const MOST: f64 = 1000.0;
/// What comes back each second.
const EACH_SECOND: f64 = 100.0;
/// Bytes sent to the peer for which it may say one thing more (acknowledging pings, opening windows).
const BYTES_FOR_ONE: f64 = 1024.0;
/// A head of so many bytes, compressed, is usual. What is longer draws on the allowance, until it is known to be a request
/// that is served.
pub const LONG_HEAD: usize = 4096;
/// So many bytes more draw one: what is refused is read all the same, which takes long. Of a server, whose heads nobody gives back,
/// sixteen times as many.
const BYTES_OF_HEAD: f64 = 64.0;
const BYTES_OF_ANSWER: f64 = 1024.0;
/// Frames that a peer may have served before others have their turn.
const TURN: usize = 64;
/// So many bytes of a header block are as much work as a frame.
const BLOCK: usize = 256;
/// A request is as much work as so many of them.
const WORK: usize = 8;
/// Who has used up so much of its allowance is read in small pieces (what was read is served in one go), and rests in between.
const SPENT: f64 = 100.0;
/// Such a piece, in bytes.
pub const PIECE: usize = 1024;
/// And so is, for its first bytes, who has not been seen before.
const NEW: usize = 8 << 10;
/// For each part of the allowance that it spends further; a flood that uses up all of it twice takes a second to do so.
const REST: Duration = Duration::from_micros(500);
/// Below this much it is not worth a timer.
const LEAST_SPENT: f64 = 8.0;
/// A frame that nobody needs: an empty DATA frame that ends nothing, of which h2 bears a hundred in a connection's life, or a
/// short part of a head behind which there is another, or a window that grows by nothing (for which h2 resets the stream).
const IDLE: f64 = 8.0;
/// Such a part, in bytes.
const SHORT_PART: usize = 1024;
/// A request earns this, and a reset costs more: who takes back more than a third of what it asks for is cut off, after 500
/// (Envoy's number) at the latest where it takes back all.
const REQUEST: f64 = 2.0;
const RESET: f64 = 6.0;

/// What was seen of one direction of a connection.
#[derive(Debug)]
pub struct Frames {
    /// Bytes of the client's preface still to come.
    preface: usize,
    head: [u8; WHOLE],
    /// How much of a head is there, and how much there is to be.
    have: usize,
    want: usize,
    /// Payload bytes still to pass over.
    payload: usize,
    allowance: f64,
    filled: Option<Instant>,
    /// Frames of the turn under way.
    turn: usize,
    /// What was spent since the last rest.
    spent: f64,
    /// What of it was spent on long heads.
    of_heads: f64,
    /// So many bytes of a long head draw one.
    bytes_of_head: f64,
    /// What long heads drew that are not known to be requests.
    drawn: f64,
    /// Of its first bytes, how many are to come.
    new: usize,
}

/// The peer keeps us busy for nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("more HTTP/2 control frames than any use explains")]
pub struct Flood;

impl Frames {
    /// Frames of a client, after its preface.
    pub fn of_client() -> Self {
        Self::after(crate::door::preface::H2_PREFACE.len(), BYTES_OF_HEAD)
    }

    /// Frames of a server.
    pub fn of_server() -> Self {
        Self::after(0, BYTES_OF_ANSWER)
    }

    fn after(preface: usize, bytes_of_head: f64) -> Self {
        Self {
            preface,
            head: [0; WHOLE],
            have: 0,
            want: HEAD,
            payload: 0,
            allowance: MOST,
            filled: None,
            turn: 0,
            spent: 0.0,
            of_heads: 0.0,
            bytes_of_head,
            drawn: 0.0,
            new: NEW,
        }
    }

    /// Bytes came from the peer.
    ///
    /// # Errors
    /// [`Flood`]: the connection is to be closed.
    pub fn came(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        self.new = self.new.saturating_sub(bytes.len());
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        bytes = bytes.get(skipped..).unwrap_or_default();
        while !bytes.is_empty() {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            let room = self.head.get_mut(self.have..self.want).unwrap_or_default();
            let taken = room.len().min(bytes.len());
            room.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            self.have += taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.have == HEAD && self.head.starts_with(&WINDOW_UPDATE) {
                self.want = WHOLE;
            }
            if self.have == self.want {
                (self.have, self.want) = (0, HEAD);
                self.frame()?;
            }
        }
        Ok(())
    }

    /// Whether others should have their turn now; the next one begins then.
    pub fn passes_turn(&mut self) -> bool {
        let over = self.turn >= TURN;
        if over {
            self.turn = 0;
        }
        over
    }

    /// Nothing more has come: the next bytes begin a new turn.
    pub fn rests(&mut self) {
        self.turn = 0;
    }

    /// Whether this peer is to be read in pieces of [`PIECE`].
    pub fn in_pieces(&self) -> bool {
        self.new > 0 || self.is_suspect()
    }

    fn is_suspect(&self) -> bool {
        self.allowance < MOST - SPENT
    }

    /// Heads of together so many bytes turned out to be requests: what was drawn for their length is given back.
    pub fn served(&mut self, bytes: usize) {
        let back = (bytes as f64 / self.bytes_of_head).min(self.drawn);
        self.drawn -= back;
        self.allowance = (self.allowance + back).min(MOST);
        self.spent = (self.spent - back).max(0.0);
        self.of_heads = (self.of_heads - back).max(0.0);
    }

    /// How long this peer is not read now, for what it has spent.
    pub fn rest(&mut self) -> Option<Duration> {
        if !self.is_suspect() {
            (self.spent, self.of_heads) = (0.0, 0.0);
            return None;
        }
        if self.spent < LEAST_SPENT {
            return None;
        }
        self.of_heads = 0.0;
        Some(REST.mul_f64(std::mem::take(&mut self.spent)))
    }

    /// How long what has just come waits before it is looked at further: for all that it spent but long heads, which may
    /// turn out to be requests. What ends the connection at once would only be followed by the next one.
    pub fn rest_first(&mut self) -> Option<Duration> {
        let spent = self.spent - self.of_heads;
        if !self.is_suspect() || spent < LEAST_SPENT {
            return None;
        }
        self.spent = self.of_heads;
        Some(REST.mul_f64(spent))
    }

    /// Bytes went to the peer.
    pub fn went(&mut self, count: usize) {
        self.allowance = (self.allowance + count as f64 / BYTES_FOR_ONE).min(MOST);
    }

    fn frame(&mut self) -> Result<(), Flood> {
        let [a, b, c, kind, flags, _, _, _, _, increment @ ..] = self.head;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let is_window = self.head.starts_with(&WINDOW_UPDATE);
        self.payload = if is_window { 0 } else { length };
        self.turn += match kind {
            1 => WORK + length / BLOCK,
            9 => 1 + length / BLOCK,
            _ => 1,
        };
        let change = match kind {
            // DATA
            0 if length > 0 => 1.0,
            0 if flags & END_STREAM == 0 => -IDLE,
            8 if is_window && increment == [0; 4] => -IDLE,
            // CONTINUATION
            9 if length < SHORT_PART && flags & END_HEADERS == 0 => -IDLE,
            // HEADERS; long ones are read and may be refused without end.
            1 => {
                let draws = length.saturating_sub(LONG_HEAD) as f64 / self.bytes_of_head;
                self.drawn += draws;
                self.of_heads = (self.of_heads + draws).min(MOST);
                REQUEST - draws
            }
            // RST_STREAM
            3 => -RESET,
            _ => -1.0,
        };
        self.allowance = (self.allowance + change).min(MOST);
        self.spent = (self.spent - change).clamp(0.0, MOST);
        if self.allowance >= 0.0 {
            return Ok(());
        }
        // The clock is read only when an allowance is used up.
        let now = Instant::now();
        let passed = self.filled.map_or(0.0, |filled| now.duration_since(filled).as_secs_f64());
        let first = self.filled.replace(now).is_none();
        self.allowance = if first { MOST } else { (self.allowance + passed * EACH_SECOND).min(MOST) };
        if self.allowance >= 0.0 { Ok(()) } else { Err(Flood) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, length, kind, 0, 0, 0, 0, 0];
        bytes.resize(HEAD + usize::from(length), 1);
        bytes
    }

    /// How many frames of these kinds, over and over, are borne at once.
    fn borne(kinds: &[(u8, u8)]) -> usize {
        let mut frames = Frames::of_server();
        let round: Vec<u8> = kinds.iter().flat_map(|(kind, length)| frame(*kind, *length)).collect();
        (0..20_000).take_while(|_| frames.came(&round).is_ok()).count()
    }

    #[test]
    fn floods_end_and_requests_do_not() {
        // Twice the most, because the first shortage is forgiven.
        for control in [(6, 8), (4, 0), (2, 5), (8, 4)] {
            assert!((1999..2200).contains(&borne(&[control])), "{control:?}: {}", borne(&[control]));
        }
        assert!(borne(&[(3, 4)]) < 600, "resets");
        assert!(borne(&[(1, 10), (3, 4)]) < 520, "rapid reset: {}", borne(&[(1, 10), (3, 4)]));
        assert_eq!(borne(&[(1, 10), (0, 100), (8, 4), (6, 8)]), 20_000, "calls with a ping and a window each");
        assert_eq!(borne(&[(1, 10), (1, 10), (1, 10), (3, 4)]), 20_000, "every third call is taken back");
    }

    #[test]
    fn what_costs_is_looked_at_late() {
        let came = |kind, flags, length, count| {
            let mut bytes = frame(kind, length);
            bytes[4] = flags;
            bytes[HEAD..].fill(0);
            let mut frames = Frames::of_server();
            assert_eq!(frames.came(&bytes.repeat(count)), Ok(()));
            (frames.rest_first(), frames.rest_first(), frames.rest())
        };
        let millis = |millis: u64| Some(Duration::from_millis(millis));
        assert_eq!(came(0, 0, 0, 100), (millis(400), None, None), "four milliseconds for each empty frame");
        assert_eq!(came(0, END_STREAM, 0, 100), (None, None, None), "but for those that end something");
        assert_eq!(came(9, 0, 5, 50), (millis(200), None, None), "and for each short part of a head");
        assert_eq!(came(9, END_HEADERS, 5, 50), (None, None, None), "but the last");
        assert_eq!(came(8, 0, 4, 50), (millis(200), None, None), "for each window that grows by nothing");
        assert_eq!(came(6, 0, 8, 120), (millis(60), None, None), "pings");
        let mut frames = Frames::of_client();
        frames.came(&vec![0; frames.preface]).unwrap();
        for _ in 0..2 {
            frames.came(&[0, 0x20, 0, 1, 4, 0, 0, 0, 1]).unwrap();
            frames.came(&vec![0; 0x2000]).unwrap();
        }
        assert_eq!(frames.rest_first(), None, "long heads");
        assert!(frames.rest().is_some(), "unless they turn out to be none");
        frames.came(&frame(6, 8).repeat(20)).unwrap();
        assert_eq!(frames.rest_first(), millis(10), "what comes after them is no head");
    }

    #[test]
    fn turns_end_and_who_spends_rests() {
        let mut frames = Frames { new: 0, ..Frames::of_server() };
        let mut after = |count: usize, kind: u8| {
            assert_eq!(frames.came(&frame(kind, 8).repeat(count)), Ok(()));
            (frames.passes_turn(), frames.is_suspect(), frames.rest())
        };
        let millis = |millis: u64| Some(Duration::from_millis(millis));
        assert_eq!(after(63, 6), (false, false, None));
        assert_eq!(after(1, 6), (true, false, None), "the turn is over");
        assert_eq!(after(8, 1), (true, false, None), "eight requests are as much");
        assert_eq!(after(130, 6), (true, true, millis(65)), "half a millisecond for each ping");
        assert_eq!(after(1, 6), (false, true, None), "not worth a timer");
        assert_eq!(after(3, 3), (false, true, Some(Duration::from_micros(9_500))), "six times for each reset");
        assert_eq!(after(7, 1), (false, true, None), "requests cost nothing");
        assert_eq!(after(200, 0), (true, false, None), "what is asked and sent makes up for it");
        frames.came(&frame(6, 8).repeat(63)).unwrap();
        frames.rests();
        assert_eq!(frames.came(&frame(6, 8)), Ok(()));
        assert!(!frames.passes_turn(), "silence begins another turn");
    }

    #[test]
    fn long_heads_are_borne_where_they_are_requests() {
        let head: Vec<u8> = [&[0, 0x40, 0, 1, 4, 0, 0, 0, 1][..], &[0; 16 << 10]].concat();
        let borne = |served: usize| {
            let mut frames = Frames { preface: 0, ..Frames::of_client() };
            let lives = |_: &usize| {
                let lives = frames.came(&head).is_ok();
                frames.served(served);
                lives
            };
            (0..1000).take_while(lives).count()
        };
        assert_eq!(borne(20 << 10), 1000, "requests");
        assert!((10..14).contains(&borne(0)), "refused ones: {}", borne(0));
        let answer: Vec<u8> =
            [&[0, 0x20, 0, 1, 4, 0, 0, 0, 1][..], &[0; 8 << 10], &frame(0, 200), &frame(0, 200)].concat();
        let mut server = Frames::of_server();
        assert!((0..1000).all(|_| server.came(&answer).is_ok()), "a server's heads of 8 KiB are borne");
        let mut frames = Frames::of_server();
        frames.served(1 << 30);
        frames.came(&frame(3, 4).repeat(100)).unwrap();
        assert!(frames.is_suspect(), "nothing is saved up that was not drawn");
    }

    #[test]
    fn who_is_new_is_read_in_pieces() {
        let mut frames = Frames::of_client();
        assert!(frames.in_pieces());
        frames.came(&[crate::door::preface::H2_PREFACE, &frame(1, 200).repeat(50)].concat()).unwrap();
        assert!(!frames.in_pieces());
    }

    #[test]
    fn bytes_sent_allow_for_windows() {
        let mut frames = Frames::of_server();
        let windows: Vec<u8> = [frame(8, 4), frame(8, 4)].concat();
        for _ in 0..20_000 {
            frames.went(16 << 10);
            assert_eq!(frames.came(&windows), Ok(()));
        }
    }

    #[test]
    fn any_cut_sees_the_same() {
        let mut bytes = crate::door::preface::H2_PREFACE.to_vec();
        for _ in 0..700 {
            bytes.extend([frame(1, 40), frame(6, 8), frame(3, 4), frame(2, 5)].concat());
        }
        for size in [1, 2, 7, 9, 10, 64, bytes.len()] {
            let mut frames = Frames::of_client();
            let seen: Vec<bool> = bytes.chunks(size).map(|chunk| frames.came(chunk).is_ok()).collect();
            assert!(seen.iter().any(|fine| !fine), "cut in {size}");
            assert!(seen.first().is_some_and(|fine| *fine || size == bytes.len()));
        }
    }
}
