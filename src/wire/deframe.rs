//! Cuts a stream of bytes into frames, whatever pieces it arrives in.
//!
//! A control frame is handed over whole; the bytes of a DATA frame are handed over as they come, so that a block need
//! not be held twice. Holds at most one control frame.

use super::codec::Malformed;
use super::frame::{DATA_HEADER, DataHeader, FRAME_HEADER, Frame, Prefix};

/// What came out of the stream.
#[expect(clippy::large_enum_variant, reason = "it lives on the stack for one call")]
#[derive(Debug, PartialEq)]
pub enum Piece<'a> {
    Frame(Frame),
    /// Some of a block's bytes: `header.offset` and `header.len` say where just these belong.
    Data(DataHeader, &'a [u8]),
}

#[derive(Default)]
pub struct Deframer {
    /// The beginning of a frame whose rest has not come.
    partial: Vec<u8>,
    /// What the DATA frame being received still lacks.
    data: Option<DataHeader>,
}

impl Deframer {
    /// Hands over what `bytes` complete. After an error the stream is out of step and must be closed.
    pub fn feed(&mut self, mut bytes: &[u8], mut take: impl FnMut(Piece<'_>)) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            if let Some(data) = &mut self.data {
                let (now, rest) = bytes.split_at(bytes.len().min(data.len as usize));
                take(Piece::Data(DataHeader { len: now.len() as u16, ..*data }, now));
                data.offset += now.len() as u16;
                data.len -= now.len() as u16;
                if data.len == 0 {
                    self.data = None;
                }
                bytes = rest;
                continue;
            }
            let need = self.need()?;
            let (now, rest) = bytes.split_at(bytes.len().min(need - self.partial.len()));
            self.partial.extend_from_slice(now);
            bytes = rest;
            if self.partial.len() == self.need()? {
                self.complete(&mut take)?;
            }
        }
        Ok(())
    }

    /// How long the partial frame must be before it says more of itself.
    fn need(&self) -> Result<usize, Malformed> {
        let Some(prefix) = self.partial.first_chunk::<FRAME_HEADER>() else { return Ok(FRAME_HEADER) };
        let prefix = Prefix::parse(prefix)?;
        Ok(FRAME_HEADER + if prefix.is_data() { DATA_HEADER } else { prefix.len as usize })
    }

    fn complete(&mut self, take: &mut impl FnMut(Piece<'_>)) -> Result<(), Malformed> {
        let Some((prefix, body)) = self.partial.split_first_chunk::<FRAME_HEADER>() else { return Ok(()) };
        let prefix = Prefix::parse(prefix)?;
        match body.first_chunk::<DATA_HEADER>() {
            Some(header) if prefix.is_data() => self.data = Some(prefix.data(header)?),
            _ => take(Piece::Frame(prefix.frame(body)?)),
        }
        self.partial.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::frame::data_header;

    /// Two control frames around a DATA frame, and what they must come out as.
    fn stream() -> (Vec<u8>, Vec<u8>) {
        let block: Vec<u8> = (0..5000).map(|n| n as u8).collect();
        let mut bytes = Vec::new();
        Frame::Ask { count: 7 }.encode(&mut bytes);
        bytes.extend(data_header(DataHeader { transfer: 1, block: 2, offset: 100, len: 5000 }));
        bytes.extend(&block);
        Frame::Abort { transfer: 9 }.encode(&mut bytes);
        (bytes, block)
    }

    proptest! {
        #[test]
        fn frames_come_out_alike_however_the_stream_is_cut(cuts in prop::collection::vec(1usize..3000, 1..200)) {
            let (bytes, block) = stream();
            let mut deframer = Deframer::default();
            let (mut frames, mut data) = (Vec::new(), Vec::new());
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at(rest.len().min(*cut));
                deframer.feed(now, |piece| match piece {
                    Piece::Frame(frame) => frames.push(frame),
                    Piece::Data(header, bytes) => {
                        assert_eq!((header.transfer, header.block), (1, 2));
                        assert_eq!(header.offset as usize, 100 + data.len());
                        assert_eq!(header.len as usize, bytes.len());
                        data.extend_from_slice(bytes);
                    }
                }).unwrap();
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(frames, vec![Frame::Ask { count: 7 }, Frame::Abort { transfer: 9 }]);
            prop_assert_eq!(data, block);
        }

        #[test]
        fn any_stream_is_cut_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = Deframer::default().feed(&bytes, |_| {});
        }
    }

    #[test]
    fn an_empty_body_is_complete_with_its_prefix() {
        // No frame has an empty body today: it must be refused at once rather than waited for.
        let crc = crc32fast::hash(&[1, 16, 0, 0]).to_le_bytes();
        let bytes = [[1, 16, 0, 0], crc].concat();
        assert_eq!(Deframer::default().feed(&bytes, |_| {}), Err(Malformed::Short));
    }
}
