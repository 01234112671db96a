//! Reading protobuf wire bytes without their types: fields one after another, never a panic.

/// One field as it stands on the wire.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) number: u32,
    pub(crate) value: Value<'a>,
}

/// A field's value, by wire type.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The bytes are not protobuf.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Malformed;

/// Goes over the fields of a message. After an error it ends.
pub(crate) struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn entry(&mut self) -> Result<Entry<'a>, Malformed> {
        let tag = varint(&mut self.rest)?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number)).ok_or(Malformed)?;
        let value = match tag & 7 {
            0 => Value::Varint(varint(&mut self.rest)?),
            1 => Value::Fixed64(u64::from_le_bytes(array(&mut self.rest)?)),
            2 => {
                let length = usize::try_from(varint(&mut self.rest)?).map_err(|_| Malformed)?;
                let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
                self.rest = rest;
                Value::Bytes(bytes)
            }
            5 => Value::Fixed32(u32::from_le_bytes(array(&mut self.rest)?)),
            // Groups went out of use before Envoy was born.
            _ => return Err(Malformed),
        };
        Ok(Entry { number, value })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let entry = self.entry();
        if entry.is_err() {
            self.rest = &[];
        }
        Some(entry)
    }
}

/// Takes a varint off the front.
pub(crate) fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0_u64;
    for shift in (0..70).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or(Malformed)?;
        *rest = tail;
        // The tenth byte has room for one bit only.
        if shift == 63 && byte > 1 {
            return Err(Malformed);
        }
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(Malformed)
}

/// Takes `N` bytes off the front.
pub(crate) fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (bytes, tail) = rest.split_first_chunk::<N>().ok_or(Malformed)?;
    *rest = tail;
    Ok(*bytes)
}

/// Appends a varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a field's tag.
pub(crate) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

/// Appends a length-delimited field.
pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_in_order() {
        let mut bytes = Vec::new();
        put_tag(&mut bytes, 1, 0);
        put_varint(&mut bytes, 300);
        put_bytes(&mut bytes, 1000, b"hi");
        let entries: Vec<_> = Entries::new(&bytes).collect();
        assert_eq!(
            entries,
            [
                Ok(Entry { number: 1, value: Value::Varint(300) }),
                Ok(Entry { number: 1000, value: Value::Bytes(b"hi") })
            ]
        );
    }

    #[test]
    fn cut_and_overlong_bytes_are_malformed() {
        for bytes in [
            &b"\x08"[..],
            b"\x0a\x05ab",
            b"\x09\x01",
            b"\x00\x01",
            b"\x0b",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
        ] {
            assert_eq!(Entries::new(bytes).last(), Some(Err(Malformed)), "{bytes:?}");
        }
    }
}
