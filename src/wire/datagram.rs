//! Datagrams: how nodes find each other. JOIN is the only broadcast; PEERS answers it, and REFUSAL where the question
//! was of a swarm with another secret, or none. A swarm with a secret sends them sealed (`wire/sealed.rs`).
//!
//! ```text
//! offset  bytes  field
//! 0       4      "swfs"
//! 4       1      version, 1
//! 5       1      kind: 1 JOIN, 2 PEERS, 3 REFUSAL
//! 6       2      0
//! 8       4      CRC-32 of the whole datagram with these four bytes 0
//! 12      n      body
//!
//! JOIN    node id 8, own port 2, head's sequence 8 (0: none yet), position 8, tree name 2 + n (empty: any);
//!         then zeros up to 1,200 bytes in all, so that no answer is larger than its question
//! PEERS   node id 8, own port 2, flags 1 (bit 0: origin), tree head (wire/head.rs), peers
//! REFUSAL flags 1 (bit 0: the sender's swarm has a secret)
//! peers   count 1, then for each: node id 8, family 1 (4 or 6), address 4 or 16, port 2
//! ```

use std::net::{IpAddr, SocketAddr};

use super::codec::{Malformed, Reader, Writer};
use super::frame::NodeId;
use super::head::{MAX_HEAD, TreeHead, TreeName};

/// The size of a JOIN and the greatest of any datagram: fits an Ethernet frame with room for tunnels.
pub const MAX_DATAGRAM: usize = 1200;
/// The greatest datagram without a JOIN's padding: sealed it is as long as any other.
pub const MAX_BARE: usize = MAX_DATAGRAM - super::sealed::SEALING;
/// Peers that surely fit an answer, whatever their family and the tree's name.
pub const MAX_PEERS: usize = (MAX_BARE - 12 - 11 - MAX_HEAD - 1) / 27;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    pub node: NodeId,
    pub addr: SocketAddr,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Join {
    pub node: NodeId,
    pub port: u16,
    /// Sequence of the head that the asker has; 0 for none.
    pub sequence: u64,
    pub position: u64,
    /// The tree looked for; any if absent.
    pub tree: Option<TreeName>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    pub node: NodeId,
    pub port: u16,
    pub origin: bool,
    pub head: TreeHead,
    pub peers: Vec<Peer>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Datagram {
    Join(Join),
    Peers(Box<Welcome>),
    /// A question was heard that is not this swarm's. Says nothing else, and proves nothing.
    Refusal {
        secret: bool,
    },
}

pub const MAGIC: &[u8; 4] = b"swfs";

impl Datagram {
    pub fn encode(&self) -> Vec<u8> {
        self.emit(MAX_DATAGRAM)
    }

    /// As it is before it is sealed: a question without its padding, which comes with the sealing.
    pub fn encode_bare(&self) -> Vec<u8> {
        self.emit(0)
    }

    fn emit(&self, least_question: usize) -> Vec<u8> {
        let mut out = Writer::new();
        out.bytes(MAGIC).u8(1);
        match self {
            Datagram::Join(join) => {
                out.u8(1).u16(0).u32(0);
                out.u64(join.node.0).u16(join.port).u64(join.sequence).u64(join.position);
                out.string(join.tree.as_ref().map_or(b"", |tree| tree.as_str().as_bytes()));
            }
            Datagram::Peers(welcome) => {
                out.u8(2).u16(0).u32(0);
                out.u64(welcome.node.0).u16(welcome.port).u8(welcome.origin as u8);
                welcome.head.encode(&mut out);
                write_peers(&mut out, &welcome.peers[..welcome.peers.len().min(MAX_PEERS)]);
            }
            Datagram::Refusal { secret } => {
                out.u8(3).u16(0).u32(0).u8(*secret as u8);
            }
        }
        let mut bytes = out.finish();
        if matches!(self, Datagram::Join(_)) {
            bytes.resize(bytes.len().max(least_question), 0);
        }
        let crc = crc32fast::hash(&bytes);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn parse(bytes: &[u8]) -> Result<Datagram, Malformed> {
        if bytes.len() > MAX_DATAGRAM {
            return Err(Malformed::Bound("datagram"));
        }
        let datagram = Datagram::parse_bare(bytes)?;
        // A short question could make us a reflector.
        if matches!(datagram, Datagram::Join(_)) && bytes.len() != MAX_DATAGRAM {
            return Err(Malformed::Short);
        }
        Ok(datagram)
    }

    /// What was sealed. Its length is no matter: all that is sealed has the same.
    pub fn parse_bare(bytes: &[u8]) -> Result<Datagram, Malformed> {
        let mut from = Reader::new(bytes);
        if from.array::<4>()? != *MAGIC {
            return Err(Malformed::Bound("magic"));
        }
        let version = from.u8()?;
        if version != 1 {
            return Err(Malformed::Version(version));
        }
        let kind = from.u8()?;
        let zero = from.u16()?;
        let crc = from.u32()?;
        let mut hash = crc32fast::Hasher::new();
        hash.update(&bytes[..8]);
        hash.update(&[0; 4]);
        hash.update(&bytes[12..]);
        if hash.finalize() != crc || zero != 0 {
            return Err(Malformed::Checksum);
        }
        match kind {
            1 => {
                let join = Join {
                    node: NodeId(from.u64()?),
                    port: from.u16()?,
                    sequence: from.u64()?,
                    position: from.u64()?,
                    tree: match std::str::from_utf8(from.string(255, "tree name")?) {
                        Ok("") => None,
                        Ok(name) => Some(name.parse().map_err(|_| Malformed::Bound("tree name"))?),
                        Err(_) => return Err(Malformed::Bound("tree name")),
                    },
                };
                Ok(Datagram::Join(join))
            }
            2 => {
                let welcome = Welcome {
                    node: NodeId(from.u64()?),
                    port: from.u16()?,
                    origin: from.u8()? & 1 == 1,
                    head: TreeHead::decode(&mut from)?,
                    peers: read_peers(&mut from)?,
                };
                from.end()?;
                Ok(Datagram::Peers(Box::new(welcome)))
            }
            3 => {
                let secret = from.u8()? & 1 == 1;
                from.end()?;
                Ok(Datagram::Refusal { secret })
            }
            _ => Err(Malformed::Kind(kind)),
        }
    }
}

/// Writes at most 255 peers.
pub fn write_peers(out: &mut Writer, peers: &[Peer]) {
    let peers = &peers[..peers.len().min(255)];
    out.u8(peers.len() as u8);
    for peer in peers {
        out.u64(peer.node.0);
        match peer.addr.ip() {
            IpAddr::V4(ip) => out.u8(4).bytes(&ip.octets()),
            IpAddr::V6(ip) => out.u8(6).bytes(&ip.octets()),
        };
        out.u16(peer.addr.port());
    }
}

pub fn read_peers(from: &mut Reader) -> Result<Vec<Peer>, Malformed> {
    let mut peers = Vec::new();
    for _ in 0..from.u8()? {
        let node = NodeId(from.u64()?);
        let ip: IpAddr = match from.u8()? {
            4 => from.array::<4>()?.into(),
            6 => from.array::<16>()?.into(),
            _ => return Err(Malformed::Bound("address family")),
        };
        peers.push(Peer { node, addr: SocketAddr::new(ip, from.u16()?) });
    }
    Ok(peers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keys::OriginKey;
    use crate::wire::head::{PageHash, Totals};

    fn welcome(name: &str, peers: usize) -> Datagram {
        let peer = |n: usize| Peer {
            node: NodeId(n as u64),
            addr: if n.is_multiple_of(2) { ([10, 0, 0, n as u8], 19024).into() } else { ([n as u16; 8], 19024).into() },
        };
        let key = OriginKey::from_seed(&[1; 32]);
        let head = TreeHead::sign(name.parse().unwrap(), 9, PageHash([2; 32]), 0, Totals::default(), &key);
        let peers = (0..peers).map(peer).collect();
        Datagram::Peers(Box::new(Welcome { node: NodeId(5), port: 19024, origin: true, head, peers }))
    }

    fn join(tree: Option<&str>) -> Datagram {
        let tree = tree.map(|name| name.parse().unwrap());
        Datagram::Join(Join { node: NodeId(0x0102030405060708), port: 19024, sequence: 3, position: 4, tree })
    }

    #[test]
    fn datagrams_survive_their_bytes_and_any_changed_bit_is_noticed() {
        let longest = welcome(&"x".repeat(255), MAX_PEERS);
        let refusals = [true, false].map(|secret| Datagram::Refusal { secret });
        for datagram in [join(None), join(Some("images")), welcome("images", 0), longest].into_iter().chain(refusals) {
            assert_eq!(Datagram::parse_bare(&datagram.encode_bare()), Ok(datagram.clone()));
            assert!(datagram.encode_bare().len() <= MAX_BARE);
            let bytes = datagram.encode();
            assert!(bytes.len() <= MAX_DATAGRAM);
            assert_eq!(Datagram::parse(&bytes), Ok(datagram));
            for position in 0..bytes.len() {
                let mut wrong = bytes.clone();
                wrong[position] ^= 0x10;
                assert!(Datagram::parse(&wrong).is_err(), "byte {position}");
            }
        }
    }

    #[test]
    fn no_answer_is_larger_than_its_question() {
        assert_eq!(join(None).encode().len(), MAX_DATAGRAM);
        assert!(welcome(&"x".repeat(255), 200).encode().len() <= MAX_DATAGRAM);
        let mut short = join(None).encode();
        short.truncate(100);
        short[8..12].fill(0);
        let crc = crc32fast::hash(&short);
        short[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Datagram::parse(&short), Err(Malformed::Short));
    }

    #[test]
    fn a_join_begins_as_drawn() {
        let bytes = join(Some("im")).encode();
        assert_eq!(bytes[..8], *b"swfs\x01\x01\0\0");
        assert_eq!(bytes[12..24], [8, 7, 6, 5, 4, 3, 2, 1, 0x50, 0x4a, 3, 0]);
        assert_eq!(bytes[38..42], *b"\x02\0im");
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..1300)) {
            let _ = Datagram::parse(&bytes);
        }
    }
}
