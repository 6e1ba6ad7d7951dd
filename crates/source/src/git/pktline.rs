//! Packet lines, the frames of git's wire protocol: four hexadecimal digits of length, then data.
//!
//! Pure: bytes in, packets out. Knows nothing of what the packets mean.

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

/// Most data that one packet carries.
pub(super) const MAX_DATA: usize = 65_516;

/// Most text that one side-band packet carries: a byte goes to the band's number.
const MAX_BAND_DATA: usize = MAX_DATA - 1;

/// Ends a section.
pub(super) const FLUSH: &[u8] = b"0000";

/// The band of a side-band packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Band {
    /// The answer itself.
    Data = 1,
    /// Text for the person at the terminal.
    Progress = 2,
}

/// One packet, borrowed from the buffer it was found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packet<'buffer> {
    /// `0000`: the end of a section.
    Flush,
    /// `0001` or `0002`: separators of protocol version 2.
    Separator,
    /// A packet with data, which may be empty.
    Data(&'buffer [u8]),
}

/// The bytes are not packets. The sender's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the request is not in git's packet format, use a git client")]
pub(super) struct PacketError;

/// Finds the packet at the start of `buffer` and how many bytes it takes; `None` if more bytes
/// are needed to tell.
pub(super) fn first(buffer: &[u8]) -> Result<Option<(Packet<'_>, usize)>, PacketError> {
    let Some(digits) = buffer.first_chunk::<4>() else {
        return if buffer.iter().all(u8::is_ascii_hexdigit) { Ok(None) } else { Err(PacketError) };
    };
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(PacketError);
    }
    let length = std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| usize::from_str_radix(digits, 16).ok())
        .ok_or(PacketError)?;
    match length {
        0 => Ok(Some((Packet::Flush, 4))),
        1 | 2 => Ok(Some((Packet::Separator, 4))),
        3 => Err(PacketError),
        length if length > MAX_DATA + 4 => Err(PacketError),
        length => Ok(buffer.get(4..length).map(|data| (Packet::Data(data), length))),
    }
}

/// Appends one data packet; `data` beyond [`MAX_DATA`] is cut.
pub(super) fn put(out: &mut BytesMut, data: &[u8]) {
    let data = &data[..data.len().min(MAX_DATA)];
    out.put_slice(format!("{:04x}", data.len() + 4).as_bytes());
    out.put_slice(data);
}

/// Appends `data` as side-band packets, as many as it takes; empty data is one empty packet,
/// which tells the other side nothing but that we live.
pub(super) fn put_band(out: &mut BytesMut, band: Band, data: &[u8]) {
    let mut put_one = |part: &[u8]| {
        out.put_slice(format!("{:04x}", part.len() + 5).as_bytes());
        out.put_u8(band as u8);
        out.put_slice(part);
    };
    if data.is_empty() {
        put_one(data);
    }
    data.chunks(MAX_BAND_DATA).for_each(put_one);
}

/// One or more side-band packets with `data`.
pub(super) fn band(band: Band, data: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len() + 16);
    put_band(&mut out, band, data);
    out.freeze()
}

/// Without the line feed that text packets may end in.
pub(super) fn chomp(data: &[u8]) -> &[u8] {
    data.strip_suffix(b"\n").unwrap_or(data)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_that_no_packet_has_are_refused() {
        for bad in [&b"0003"[..], b"fff5", b"00g0", b"-001", b"+00a", b" 00a", b"x"] {
            assert_eq!(first(bad), Err(PacketError), "{bad:?}");
        }
    }

    #[test]
    fn an_unfinished_packet_asks_for_more() {
        for short in [&b""[..], b"0", b"000", b"0006a"] {
            assert_eq!(first(short), Ok(None), "{short:?}");
        }
    }

    #[test]
    fn separators_and_flushes_take_four_bytes() {
        assert_eq!(first(b"0000rest"), Ok(Some((Packet::Flush, 4))));
        assert_eq!(first(b"0001"), Ok(Some((Packet::Separator, 4))));
        assert_eq!(first(b"0004"), Ok(Some((Packet::Data(b""), 4))));
    }

    proptest! {
        #[test]
        fn what_is_put_is_found_again(
            datas in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..10)
        ) {
            let mut out = BytesMut::new();
            for data in &datas {
                put(&mut out, data);
            }
            let mut rest = &out[..];
            for data in &datas {
                let (packet, length) = first(rest).unwrap().unwrap();
                prop_assert_eq!(packet, Packet::Data(data));
                rest = &rest[length..];
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn no_bytes_make_it_panic_or_reach_beyond_the_buffer(
            bytes in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            if let Ok(Some((_, length))) = first(&bytes) {
                prop_assert!(length >= 4 && length <= bytes.len());
            }
        }

        #[test]
        fn long_texts_are_spread_over_packets(length in 0_usize..200_000) {
            let text = vec![b'x'; length];
            let out = band(Band::Progress, &text);
            let mut rest = &out[..];
            let mut seen = 0;
            while !rest.is_empty() {
                let (packet, taken) = first(rest).unwrap().unwrap();
                let Packet::Data(data) = packet else { panic!("{packet:?}") };
                prop_assert_eq!(data[0], 2);
                seen += data.len() - 1;
                rest = &rest[taken..];
            }
            prop_assert_eq!(seen, length);
        }
    }
}
