//! Parsers on any bytes: none panics, and what is taken is written again as what it was.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use bytes::Bytes;
use swarmfs::catalogue::{Page, View};
use swarmfs::chunk::{BLOCK, CHUNK};
use swarmfs::cli::{FileSettings, HelperArgs};
use swarmfs::keys::{OriginKey, PublicKey, SIGNATURE};
use swarmfs::settings::{self, CacheSettings, PathSpec, TreeSpec, quantity};
use swarmfs::wire::codec::{Reader, Writer};
use swarmfs::wire::datagram::{Datagram, MAX_DATAGRAM};
use swarmfs::wire::deframe::{Deframer, Piece};
use swarmfs::wire::frame::{DataHeader, Frame};
use swarmfs::wire::head::{PageHash, TreeHead, TreeName};
use swarmfs::wire::header::SegmentHeader;
use swarmfs::wire::xcat::{Header, Request};

fn key() -> OriginKey {
    OriginKey::from_seed(&[7; 32])
}

// ---- datagrams

pub fn datagram(data: &[u8]) {
    take_datagram(data);
    // The same bytes as the body of each kind, with what surrounds it made right.
    let Some((kind, body)) = data.split_first() else { return };
    let mut bytes = [&b"swfs\x01"[..], &[1 + kind % 2, 0, 0, 0, 0, 0, 0]].concat();
    if kind % 2 == 0 {
        bytes.extend(body.iter().take(MAX_DATAGRAM - bytes.len()));
        bytes.resize(MAX_DATAGRAM, 0);
    } else {
        let (front, rest) = body.split_at(body.len().min(11));
        bytes.extend(front);
        let (head, peers) = rest.split_at(rest.len().min(usize::from(*kind)));
        bytes.extend(signed_head(head));
        bytes.extend(peers);
    }
    let crc = crc32fast::hash(&bytes);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    take_datagram(&bytes);
}

fn take_datagram(bytes: &[u8]) {
    let Ok(datagram) = Datagram::parse(bytes) else { return };
    let encoded = datagram.encode();
    assert!(encoded.len() <= MAX_DATAGRAM, "{} bytes", encoded.len());
    let again = Datagram::parse(&encoded).expect("what was written is read");
    match (datagram, again) {
        (Datagram::Peers(before), Datagram::Peers(after)) => {
            // Answers name no more peers than surely fit.
            assert_eq!((&before.head, before.node, before.port), (&after.head, after.node, after.port));
            assert!(before.peers.starts_with(&after.peers));
        }
        (before, after) => assert_eq!(before, after),
    }
}

// ---- frames

pub fn stream(data: &[u8]) {
    cut_alike(data);
    // The same bytes as frames whose lengths and checksums are right: kind, length, body.
    let (mut rest, mut framed) = (data, Vec::new());
    while let Some((&[kind, low, high], more)) = rest.split_first_chunk() {
        let len = u16::from_le_bytes([low, high]) as usize % 1500;
        let (body, more) = more.split_at(more.len().min(len));
        rest = more;
        let kind = if kind < 250 { 1 + kind % 20 } else { kind };
        let start = framed.len();
        framed.extend([1, kind]);
        framed.extend((body.len() as u16).to_le_bytes());
        framed.extend([0; 4]);
        framed.extend(body);
        let covered = if kind == 6 { &body[..body.len().min(12)] } else { body };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&framed[start..start + 4]);
        crc.update(covered);
        framed[start + 4..start + 8].copy_from_slice(&crc.finalize().to_le_bytes());
    }
    cut_alike(&framed);
}

/// However a stream is cut, the same comes out of it.
fn cut_alike(bytes: &[u8]) {
    let whole = pieces(bytes, bytes.len().max(1));
    for step in [1, 7, 1460] {
        assert_eq!(whole, pieces(bytes, step), "in steps of {step}");
    }
    for frame in whole.0 {
        let mut encoded = Vec::new();
        frame.encode(&mut encoded);
        assert_eq!(pieces(&encoded, encoded.len()).0, [frame]);
    }
}

/// Transfer, block, offset and bytes.
type Part = (u32, u32, u16, Vec<u8>);
type Came = (Vec<Frame>, Vec<Part>, bool);

/// Frames, blocks' bytes joined where they follow each other, and whether the stream was taken.
fn pieces(bytes: &[u8], step: usize) -> Came {
    let (mut frames, mut data) = (Vec::new(), Vec::<Part>::new());
    let mut deframer = Deframer::default();
    let mut fed = Ok(());
    let mut at = 0;
    while fed.is_ok() && at < bytes.len() {
        let end = bytes.len().min(at + step);
        fed = deframer.feed(&bytes[at..end], |piece| match piece {
            Piece::Frame(frame) => frames.push(frame),
            Piece::Data(DataHeader { transfer, block, offset, len }, bytes) => {
                assert_eq!(len as usize, bytes.len());
                assert!(offset as u32 + len as u32 <= BLOCK);
                match data.last_mut() {
                    Some((t, b, o, all)) if (*t, *b, *o as usize + all.len()) == (transfer, block, offset as usize) => {
                        all.extend(bytes)
                    }
                    _ => data.push((transfer, block, offset, bytes.to_vec())),
                }
            }
        });
        at = end;
    }
    (frames, data, fed.is_ok())
}

// ---- the catalogue

pub fn page(data: &[u8]) {
    let Ok(page) = Page::parse(Bytes::copy_from_slice(data)) else { return };
    assert_eq!(page.bytes(), data);
    let hash = PageHash::of(data);
    let (level, totals) = (page.level(), page.totals());
    let children: Vec<PageHash> = page.children().collect();
    let mut pages = HashMap::from([(hash, Arc::new(page))]);
    for level in [level, 0, 1] {
        look_around(&pages, &View::new(hash, level));
    }
    // A page above that tells of this one, and each page below that is this one again.
    for child in children.iter().take(4) {
        let same = pages[&hash].clone();
        pages.insert(*child, same);
    }
    look_around(&pages, &View::new(hash, level));
    assert!(totals.rows > 0 || level > 0, "a leaf without a row");
}

fn look_around(pages: &HashMap<PageHash, Arc<Page>>, view: &View) {
    let _ = view.root(pages);
    for rank in [0, 1, 2, 1000, u64::MAX] {
        let _ = view.next_files(pages, rank, 100, 1 << 20);
        let Ok(Some(entry)) = view.at(pages, rank) else { continue };
        let found = view.row(pages, entry.row.dir(), entry.row.name());
        assert!(found.is_err() || found.is_ok_and(|found| found.is_some()), "a row that is there is not found");
        if let Ok(entries) = view.entries(pages, entry.row.dir(), None, 100) {
            assert!(entries.iter().all(|other| other.row.dir() == entry.row.dir()));
        }
    }
    let _ = view.entries(pages, b"", None, 1000);
}

// ---- the legacy protocol

pub fn xcat(data: &[u8]) {
    if let Ok(request) = Request::parse(data) {
        let path = request.path();
        assert!(path.split('/').all(|name| !name.is_empty() && name != ".."), "{path:?} leaves the root");
        assert_eq!(Request::parse(request.text().as_bytes()).as_ref(), Ok(&request));
        let plain = Request::new(&path, request.chunk()).expect("a path that was taken is taken");
        assert_eq!((plain.path(), plain.chunk()), (path, request.chunk()));
        take_legacy_header(&request, data);
        take_legacy_header(&request, &[request.text().as_bytes(), b"@", data].concat());
    }
    let request = Request::new("a", 0).expect("it is a path");
    take_legacy_header(&request, &[b"a@0@", data].concat());
}

fn take_legacy_header(request: &Request, bytes: &[u8]) {
    let Ok(header) = Header::parse(request, bytes) else { return };
    assert!(header.len <= CHUNK);
    assert_eq!(Header::parse(request, &header.encode(request)), Ok(header));
}

// ---- signed records

pub fn header(data: &[u8]) {
    take_header(data);
    take_header(&sign(b"swarmfs 1 segment", data));
}

fn take_header(bytes: &[u8]) {
    let Ok(header) = SegmentHeader::open(bytes, &key().public()) else { return };
    let mut again = Writer::new();
    header.encode(&mut again);
    assert_eq!(again.as_slice(), bytes);
    assert!((1..=64).contains(&header.blocks()));
    for index in [0, 1, 63, header.blocks() - 1, header.blocks(), u32::MAX] {
        let zero = index < 64 && header.zero() >> index & 1 == 1;
        let len = if index < header.blocks() { BLOCK.min(header.len() - index * BLOCK) } else { BLOCK };
        assert_eq!(header.matches(index, &vec![0; len as usize]), zero);
    }
}

pub fn head(data: &[u8]) {
    take_head(data);
    take_head(&signed_head(data));
}

fn take_head(bytes: &[u8]) {
    let mut from = Reader::new(bytes);
    let Ok(head) = TreeHead::decode(&mut from) else { return };
    let mut again = Writer::new();
    head.encode(&mut again);
    assert_eq!(again.as_slice(), &bytes[..bytes.len() - from.remaining()]);
}

/// A head with the target's own key, whose other fields are what is given.
fn signed_head(body: &[u8]) -> Vec<u8> {
    sign(b"swarmfs 1 tree head", &[body, &key().public().to_bytes()].concat())
}

fn sign(domain: &[u8], body: &[u8]) -> Vec<u8> {
    let signature: [u8; SIGNATURE] = key().sign(&[domain, body].concat());
    [body, &signature].concat()
}

// ---- text

pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match FileSettings::parse(text) {
        Ok(settings) => mount_with(&settings, &[]),
        Err(error) => {
            let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
            assert!((1..=lines).contains(&error.line), "line {} of {lines}", error.line);
            assert!(!error.to_string().is_empty());
        }
    }
}

pub fn options(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = FileSettings::default();
    mount_with(&file, &["-o", text]);
    mount_with(&file, &["-s", "-o", text]);
    let _ = (TreeSpec::parse(OsStr::from_bytes(data)), PathSpec::parse(OsStr::from_bytes(data)));
    let _ = (text.parse::<TreeName>(), text.parse::<PublicKey>(), CacheSettings::parse(text));
    let _ = (quantity::parse_rate(text), quantity::parse_duration(text));
    let _ = (settings::parse_port(text), settings::parse_id(text), settings::parse_umask(text));
    let _ = (settings::parse_slots(text), settings::parse_peer(text), settings::parse_interface(text));
    if let Ok(size) = quantity::parse_size(text) {
        assert!(!quantity::show_size(size).is_empty());
    }
}

/// As mount(8) calls its helper.
fn mount_with(file: &FileSettings, more: &[&str]) {
    use clap::Parser;
    let words = ["mount.swarmfs", "images:", "/mnt"].into_iter().chain(more.iter().copied());
    let Ok(args) = HelperArgs::try_parse_from(words) else { return };
    match args.settings(file, 1 << 30, true) {
        Ok(request) => assert!(request.cache.budget_bytes >= 32 << 20),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
