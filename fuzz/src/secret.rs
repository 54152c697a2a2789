//! What a swarm with a secret takes from strangers, and from its own nodes.

use swarmfs::net::channel::{ANSWER, CALL_HEAD, Call, Channel, PROOF, Refused, Room, Suites, answer, call_len};
use swarmfs::secret::Secret;
use swarmfs::wire::datagram::{MAX_BARE, MAX_DATAGRAM};
use swarmfs::wire::sealed::{Envelope, NONCE, Token};

fn secret() -> Secret {
    Secret::from_bytes([7; 32])
}

/// Without the key nothing is opened; with it, what was sealed, unless a bit of it changed.
pub fn sealed(data: &[u8]) {
    let envelope = Envelope::new(&secret());
    assert_eq!(envelope.open(data), None, "sealed without the key");
    let Some((&[at_low, at_high, flip, low, high], bare)) = data.split_first_chunk() else { return };
    let bare = &bare[..bare.len().min(MAX_BARE)];
    let port = u16::from_le_bytes([low, high]);
    let (mut bytes, token) = envelope.seal([flip; NONCE], port, Token::default(), bare);
    let at = usize::from(u16::from_le_bytes([at_low, at_high]));
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= flip;
    }
    let opened = envelope.open(&bytes);
    if at < MAX_DATAGRAM && flip != 0 {
        assert_eq!(opened, None, "byte {at} was changed");
    } else {
        let opened = opened.expect("nothing was changed");
        assert_eq!((opened.token, &opened.datagram[..]), (token, bare));
    }
}

/// Whoever does not have the secret gets no link, whatever it says; over one, changed messages end it.
pub fn channel(data: &[u8]) {
    if let Some((head, steps)) = data.split_first_chunk::<CALL_HEAD>()
        && let Ok(len) = call_len(*head)
    {
        let steps = &steps[..steps.len().min(len)];
        assert!(answer(&secret(), Suites::without_aes(), *head, steps).is_err(), "called without the secret");
    }
    let Some((&[place, flip], data)) = data.split_first_chunk() else { return };
    let (mut here, mut there) = match greet(place, flip) {
        Ok(both) => both,
        Err(_) => return assert_ne!(flip, 0, "refused although nothing was changed"),
    };
    let (mut room, mut sent) = (Room::default(), Vec::new());
    let mut content = data;
    while !content.is_empty() {
        here.sealer.seal(&mut room, &mut content, &mut &[][..], &mut sent).expect("a link's first messages");
    }
    let mut came = Vec::new();
    // Cut anywhere, it is the same.
    let (first, rest) = sent.split_at(usize::from(place).min(sent.len()));
    for part in [first, rest] {
        let fed = there.opener.feed(&mut room, part, |bytes| {
            came.extend_from_slice(bytes);
            Ok(())
        });
        fed.expect("what was sealed is opened");
    }
    assert_eq!(came, data);
    // It may be the beginning of a message.
    there.opener.feed(&mut room, data, |_| unreachable!("sealed without the key")).unwrap_or_default();
}

/// Both ends of a link, if one changed byte of the greeting lets it come about.
fn greet(place: u8, flip: u8) -> Result<(Channel, Channel), Refused> {
    let change = |bytes: &mut [u8], from: usize| {
        if let Some(byte) = usize::from(place).checked_sub(from).and_then(|at| bytes.get_mut(at)) {
            *byte ^= flip;
        }
    };
    let suites = Suites::without_aes();
    let (call, mut said) = Call::begin(&secret(), suites)?;
    change(&mut said, 0);
    let (head, steps) = said.split_first_chunk().expect("a call is longer");
    if call_len(*head)? != steps.len() {
        return Err(Refused::NoCall);
    }
    let (mut called, mut answered): (Channel, [u8; ANSWER]) = answer(&secret(), suites, *head, steps)?;
    change(&mut answered, said.len());
    let (calling, proof) = call.finish(&answered)?;
    let mut proof: [u8; PROOF] = proof.try_into().expect("a proof has one length");
    change(&mut proof, said.len() + ANSWER);
    called.prove(&proof)?;
    let changed = flip != 0 && usize::from(place) < said.len() + ANSWER + PROOF;
    assert!(!changed, "byte {place} of the greeting was changed");
    Ok((calling, called))
}
