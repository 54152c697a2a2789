//! The legacy protocol's text: a request, and the header that stands before a chunk's bytes.
//!
//! ```text
//! request, one UDP datagram         PATH@N
//! answer, one TCP connection        PATH@N@SSSSSSSSLLLLLLLL body
//! ```
//!
//! N is the chunk's number in canonical decimal, S the sum of the body's bytes and L its length, each as 8 hexadecimal
//! digits, in upper case where they are written here. PATH is echoed as it was asked. A body shorter than a chunk is the
//! file's last one. There are no other messages: what cannot be answered gets silence.
//!
//! What an original server takes beyond that (other numbers, text after the number, `..`) is refused. A path may begin
//! with `/` or hold empty names: they mean nothing, here as there. NULs at the end are not part of the text.

use thiserror::Error;

use crate::chunk::CHUNK;

/// Where requests are heard and answers taken. Nothing else may be sent there: an original ends when it hears an empty
/// datagram or one that is not UTF-8.
pub const PORT: u16 = 19023;
/// Bytes in the longest path: one less than PATH_MAX, which counts the final NUL.
pub const MAX_PATH: usize = 4095;
/// Bytes in the longest request: path, `@` and ten digits.
pub const MAX_REQUEST: usize = MAX_PATH + 1 + 10;
/// Bytes after the echoed request: `@` and two numbers.
const NUMBERS: usize = 1 + 8 + 8;

/// Why text was refused.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    #[error("empty")]
    Empty,
    #[error("longer than {MAX_REQUEST} bytes")]
    Long,
    #[error("not UTF-8")]
    NotUtf8,
    #[error("not PATH@N with one '@'")]
    Form,
    #[error("a chunk's number that is not canonical decimal below 2^32")]
    Number,
    #[error("a path that names nothing below the root")]
    Path,
}

/// Why a header was refused.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum BadHeader {
    /// Nothing unusual: an answer to an earlier question that came late.
    #[error("it answers another request")]
    Other,
    #[error("its numbers are not hexadecimal")]
    Numbers,
    #[error("it announces {0} bytes, more than a chunk has")]
    Length(u32),
}

/// One chunk of one path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Request {
    /// As it was asked, and is echoed: `PATH@N`.
    text: String,
    path: usize,
    chunk: u32,
}

impl Request {
    pub fn new(path: &str, chunk: u32) -> Result<Request, Refusal> {
        if path.contains('@') {
            return Err(Refusal::Form);
        }
        Request::parse(format!("{path}@{chunk}").as_bytes())
    }

    pub fn parse(datagram: &[u8]) -> Result<Request, Refusal> {
        let end = datagram.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let bytes = &datagram[..end];
        if bytes.is_empty() {
            return Err(Refusal::Empty);
        }
        if bytes.len() > MAX_REQUEST {
            return Err(Refusal::Long);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Refusal::NotUtf8)?;
        let (path, number) = text.split_once('@').ok_or(Refusal::Form)?;
        if number.contains('@') {
            return Err(Refusal::Form);
        }
        let chunk = number.parse().ok().filter(|chunk: &u32| chunk.to_string() == number).ok_or(Refusal::Number)?;
        let mut names = names(path).peekable();
        if path.len() > MAX_PATH || path.contains('\0') || names.peek().is_none() || names.any(|name| name == "..") {
            return Err(Refusal::Path);
        }
        Ok(Request { text: text.to_owned(), path: path.len(), chunk })
    }

    /// `PATH@N`, the whole datagram.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The path as everybody would write it: one `/` between names.
    pub fn path(&self) -> String {
        names(&self.text[..self.path]).collect::<Vec<_>>().join("/")
    }

    pub fn chunk(&self) -> u32 {
        self.chunk
    }

    /// Bytes of the header that answers it.
    pub fn header_len(&self) -> usize {
        self.text.len() + NUMBERS
    }
}

/// The names that a path is made of.
fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty() && *name != ".")
}

/// What a header says of the body after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub sum: u32,
    /// At most `CHUNK`.
    pub len: u32,
}

impl Header {
    /// Of a body in parts, which together are no longer than a chunk.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Header {
        let (sum, len) = parts.into_iter().fold((0, 0), |(sum, len), part| (sum + self::sum(part), len + part.len()));
        assert!(len <= CHUNK as usize, "a body is at most a chunk");
        Header { sum, len: len as u32 }
    }

    /// The header's text in front of the body.
    pub fn encode(self, request: &Request) -> Vec<u8> {
        format!("{}@{:08X}{:08X}", request.text, self.sum, self.len).into_bytes()
    }

    /// Reads a header of `request.header_len()` bytes.
    pub fn parse(request: &Request, bytes: &[u8]) -> Result<Header, BadHeader> {
        let numbers = bytes.strip_prefix(request.text.as_bytes()).and_then(|rest| rest.strip_prefix(b"@"));
        let numbers = numbers.ok_or(BadHeader::Other)?;
        let numbers: &[u8; 16] = numbers.try_into().map_err(|_| BadHeader::Other)?;
        let (sum, len) = numbers.split_at(8);
        let (sum, len) = (hexadecimal(sum)?, hexadecimal(len)?);
        if len > CHUNK {
            return Err(BadHeader::Length(len));
        }
        Ok(Header { sum, len })
    }

    /// Whether the file goes on after this chunk.
    pub fn is_full(self) -> bool {
        self.len == CHUNK
    }
}

/// The sum of bytes. That of a whole chunk of 255s is just below 2^32.
fn sum(bytes: &[u8]) -> u32 {
    bytes.iter().map(|byte| u32::from(*byte)).sum()
}

/// Digits of either case, after blanks instead of zeros if need be.
fn hexadecimal(digits: &[u8]) -> Result<u32, BadHeader> {
    let blanks = digits.iter().take_while(|byte| **byte == b' ').count();
    let digits = &digits[blanks..];
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    text.and_then(|text| u32::from_str_radix(text, 16).ok()).ok_or(BadHeader::Numbers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_its_path_an_at_sign_and_a_number() {
        let request = Request::new("empty.bin", 0).unwrap();
        assert_eq!(request.text().as_bytes(), b"empty.bin@0");
        assert_eq!(request.text().len(), 11);
        assert_eq!(Request::parse(b"empty.bin@0"), Ok(request));
        let request = Request::parse("dir/ä b.img@4294967295".as_bytes()).unwrap();
        assert_eq!((request.path().as_str(), request.chunk()), ("dir/ä b.img", u32::MAX));
    }

    #[test]
    fn nuls_at_the_end_and_needless_slashes_mean_nothing() {
        let request = Request::parse(b"//a///./b@7\0\0").unwrap();
        assert_eq!((request.text(), request.path().as_str(), request.chunk()), ("//a///./b@7", "a/b", 7));
    }

    #[test]
    fn what_is_no_request_is_refused_for_a_reason() {
        for (text, why) in [
            (&b""[..], Refusal::Empty),
            (b"\0\0", Refusal::Empty),
            (b"a\xff@0", Refusal::NotUtf8),
            (b"a", Refusal::Form),
            (b"a@b@0", Refusal::Form),
            (b"a@0@whatever", Refusal::Form),
            (b"a@", Refusal::Number),
            (b"a@007", Refusal::Number),
            (b"a@+0", Refusal::Number),
            (b"a@-1", Refusal::Number),
            (b"a@ 1", Refusal::Number),
            (b"a@0x1", Refusal::Number),
            (b"a@4294967296", Refusal::Number),
            (b"@0", Refusal::Path),
            (b"/@0", Refusal::Path),
            (b"./@0", Refusal::Path),
            (b"../etc/passwd@0", Refusal::Path),
            (b"/a/../../b@0", Refusal::Path),
            (b"a\0b@0", Refusal::Path),
        ] {
            assert_eq!(Request::parse(text), Err(why), "{}", text.escape_ascii());
        }
        let long = format!("{}@0", "x".repeat(MAX_PATH));
        assert!(Request::parse(long.as_bytes()).is_ok());
        assert_eq!(Request::parse(format!("x{long}").as_bytes()), Err(Refusal::Path));
        assert_eq!(Request::parse(&[b'x'; MAX_REQUEST + 1]), Err(Refusal::Long));
        assert_eq!(Request::new("a@b", 0), Err(Refusal::Form));
    }

    #[test]
    fn a_header_is_the_echo_the_sum_and_the_length() {
        let request = Request::new("five", 0).unwrap();
        let header = Header::of([&b"\x01\xff"[..], b"\x10\x20\x30"]);
        assert_eq!(header, Header { sum: 0x160, len: 5 });
        assert_eq!(header.encode(&request), b"five@0@0000016000000005");
        assert_eq!(request.header_len(), 23);
        for taken in [&b"five@0@0000016000000005"[..], b"five@0@     160       5"] {
            assert_eq!(Header::parse(&request, taken), Ok(header));
        }
        let lower = Header::parse(&request, b"five@0@ffffffff00ABcdef").unwrap();
        assert_eq!(lower, Header { sum: u32::MAX, len: 0xabcdef });
    }

    #[test]
    fn the_largest_sum_fits() {
        let header = Header::of([&vec![255; CHUNK as usize][..]]);
        assert_eq!((header.sum, header.len, header.is_full()), (255 << 24, CHUNK, true));
        assert_eq!(Header::of([]), Header { sum: 0, len: 0 });
    }

    #[test]
    fn a_header_that_answers_something_else_or_lies_is_refused() {
        let request = Request::new("a", 1).unwrap();
        for (text, why) in [
            (&b"a@0@0000000000000000"[..], BadHeader::Other),
            (b"a@1@000000000000000", BadHeader::Other),
            (b"a@1@00000000000000000", BadHeader::Other),
            (b"a@1@0000000x00000000", BadHeader::Numbers),
            (b"a@1@+000000000000000", BadHeader::Numbers),
            (b"a@1@        00000000", BadHeader::Numbers),
            (b"a@1@0 00000000000000", BadHeader::Numbers),
            (b"a@1@0000000001000001", BadHeader::Length(CHUNK + 1)),
            (b"a@1@00000000FFFFFFFF", BadHeader::Length(u32::MAX)),
        ] {
            assert_eq!(Header::parse(&request, text), Err(why), "{}", text.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn what_is_asked_is_understood(path in "[^@\0/]{1,30}(/[^@\0/]{1,30}){0,3}", chunk: u32) {
            prop_assume!(path.split('/').all(|name| name != "." && name != ".."));
            let request = Request::new(&path, chunk).unwrap();
            prop_assert_eq!(Request::parse(request.text().as_bytes()), Ok(request.clone()));
            prop_assert_eq!((request.path(), request.chunk()), (path, chunk));
        }

        #[test]
        fn no_bytes_panic_and_no_path_leaves_the_root(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(request) = Request::parse(&bytes) {
                prop_assert!(request.path().split('/').all(|name| !name.is_empty() && name != ".."));
                prop_assert!(!request.path().contains(['@', '\0']));
                let _ = Header::parse(&request, &bytes);
            }
        }

        #[test]
        fn a_header_is_read_as_it_was_written(sum: u32, len in 0..=CHUNK, path in "[a-z]{1,9}", chunk: u32) {
            let request = Request::new(&path, chunk).unwrap();
            let text = Header { sum, len }.encode(&request);
            prop_assert_eq!(text.len(), request.header_len());
            prop_assert_eq!(Header::parse(&request, &text), Ok(Header { sum, len }));
        }

        #[test]
        fn no_header_announces_more_than_a_chunk(numbers in "[0-9a-fA-F ]{16}") {
            let request = Request::new("a", 0).unwrap();
            if let Ok(header) = Header::parse(&request, format!("a@0@{numbers}").as_bytes()) {
                prop_assert!(header.len <= CHUNK);
            }
        }
    }
}
