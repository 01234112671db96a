//! Bodies as they come: of a length, in chunks, or until the connection ends.

use bytes::{Buf, Bytes, BytesMut};
use engine::framing::{Fault, chunk_size};
use http::HeaderMap;
use memchr::memchr;

use super::head::{self, Limits, Scan};

/// Longest first line of a chunk, extensions included.
const LONGEST_LINE: usize = 4 * 1024;

/// What is still to come of a body.
#[derive(Debug)]
pub(super) enum Decoder {
    /// Nothing.
    Done,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked {
        /// Where in them.
        place: Place,
        /// For the trailers.
        limits: Limits,
    },
    /// All that comes.
    UntilClose,
    /// Nothing that could be read: where this body ends nobody knows, whoever asks again.
    Broken(Fault),
}

/// A place within a chunked body.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// Before a chunk's first line.
    Size,
    /// Within a chunk that has so many bytes left.
    Data(u64),
    /// Before the line's end that ends a chunk.
    DataEnd,
    /// Behind the last chunk.
    Trailers(Scan),
}

/// The next part of a body.
#[derive(Debug)]
pub(super) enum Part {
    /// Bytes.
    Data(Bytes),
    /// Trailers; the end follows.
    Trailers(HeaderMap),
    /// There is no more.
    End,
    /// Not enough has come.
    More,
}

impl Decoder {
    pub(super) const fn chunked(limits: Limits) -> Self {
        Self::Chunked { place: Place::Size, limits }
    }

    pub(super) const fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// The connection has ended; whether the body has.
    pub(super) fn ends_here(&mut self) -> bool {
        if matches!(self, Self::UntilClose) {
            *self = Self::Done;
        }
        self.is_done()
    }

    /// Takes the next part out of what was read.
    ///
    /// # Errors
    /// What is no chunk.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<Part, Fault> {
        loop {
            match self {
                Self::Done => return Ok(Part::End),
                Self::Broken(fault) => return Err(*fault),
                _ if input.is_empty() => return Ok(Part::More),
                Self::UntilClose => return Ok(Part::Data(input.split().freeze())),
                Self::Length(left) => {
                    let data = up_to(input, *left);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        *self = Self::Done;
                    }
                    return Ok(Part::Data(data));
                }
                Self::Chunked { place, limits } => {
                    let limits = *limits;
                    match chunked(place, limits, input) {
                        Ok(Some(Part::End)) => *self = Self::Done,
                        Ok(Some(Part::Trailers(trailers))) => {
                            *self = Self::Done;
                            return Ok(Part::Trailers(trailers));
                        }
                        Ok(Some(part)) => return Ok(part),
                        Ok(None) => {}
                        Err(fault) => *self = Self::Broken(fault),
                    }
                }
            }
        }
    }
}

fn up_to(input: &mut BytesMut, most: u64) -> Bytes {
    let count = usize::try_from(most).unwrap_or(usize::MAX).min(input.len());
    input.split_to(count).freeze()
}

/// One step; `None`: another one follows.
fn chunked(place: &mut Place, limits: Limits, input: &mut BytesMut) -> Result<Option<Part>, Fault> {
    match *place {
        Place::Size => {
            let Some(feed) = memchr(b'\n', input) else {
                return if input.len() > LONGEST_LINE { Err(Fault::Grammar) } else { Ok(Some(Part::More)) };
            };
            let line = input.get(..feed).and_then(|line| line.strip_suffix(b"\r")).ok_or(Fault::Grammar)?;
            if line.len() > LONGEST_LINE {
                return Err(Fault::Grammar);
            }
            *place = match chunk_size(line)? {
                0 => Place::Trailers(Scan::default()),
                size => Place::Data(size),
            };
            input.advance(feed + 1);
            Ok(None)
        }
        Place::Data(left) => {
            let data = up_to(input, left);
            let left = left - data.len() as u64;
            *place = if left == 0 { Place::DataEnd } else { Place::Data(left) };
            Ok(Some(Part::Data(data)))
        }
        Place::DataEnd => match input.get(..2) {
            Some(b"\r\n") => {
                input.advance(2);
                *place = Place::Size;
                Ok(None)
            }
            None if input.first() == Some(&b'\r') => Ok(Some(Part::More)),
            _ => Err(Fault::Grammar),
        },
        Place::Trailers(ref mut scan) => match scan.find(input, limits)? {
            None => Ok(Some(Part::More)),
            Some(2) => {
                input.advance(2);
                Ok(Some(Part::End))
            }
            Some(end) => {
                let trailers = head::trailers(&input.split_to(end).freeze(), limits)?;
                Ok(Some(if limits.trailers { Part::Trailers(trailers) } else { Part::End }))
            }
        },
    }
}
