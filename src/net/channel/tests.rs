//! Calls and messages, right and wrong, between two ends in one process.

use proptest::prelude::*;

use super::*;

const AES: Suites = Suites { aes: true };
const CHACHA: Suites = Suites { aes: false };

fn secret(byte: u8) -> Secret {
    Secret::from_bytes([byte; SECRET])
}

/// A call and its answer, as far as they come.
fn link(caller: (u8, Suites), called: (u8, Suites)) -> Result<(Channel, Channel), Refused> {
    let (call, bytes) = Call::begin(&secret(caller.0), caller.1)?;
    let (head, steps) = bytes.split_first_chunk().unwrap();
    assert_eq!(call_len(*head), Ok(steps.len()));
    let (mut there, answer) = answer(&secret(called.0), called.1, *head, steps)?;
    let (here, proof) = call.finish(&answer)?;
    there.prove(proof.as_slice().try_into().unwrap())?;
    Ok((here, there))
}

fn sealed(channel: &mut Channel, first: &[u8], second: &[u8]) -> Vec<u8> {
    let (mut room, mut out) = (Room::default(), Vec::new());
    let (mut first, mut second) = (first, second);
    while !(first.is_empty() && second.is_empty()) {
        channel.sealer.seal(&mut room, &mut first, &mut second, &mut out).unwrap();
    }
    out
}

fn opened(channel: &mut Channel, bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::new();
    channel.opener.feed(&mut Room::default(), bytes, |plain| {
        out.extend_from_slice(plain);
        Ok(())
    })?;
    Ok(out)
}

#[test]
fn the_suite_is_aes_where_both_have_it() {
    for (caller, called, expected) in [
        (AES, AES, Suite::Aes),
        (AES, CHACHA, Suite::ChaCha),
        (CHACHA, AES, Suite::ChaCha),
        (CHACHA, CHACHA, Suite::ChaCha),
    ] {
        let (mut here, mut there) = link((1, caller), (1, called)).unwrap();
        assert_eq!((here.suite, there.suite), (expected, expected));
        let bytes = sealed(&mut here, b"from here", b"");
        assert_eq!(opened(&mut there, &bytes), Ok(b"from here".to_vec()));
        let bytes = sealed(&mut there, b"from ", b"there");
        assert_eq!(opened(&mut here, &bytes), Ok(b"from there".to_vec()));
    }
}

#[test]
fn another_secret_is_noticed_by_the_first_message() {
    let (_, bytes) = Call::begin(&secret(1), AES).unwrap();
    let (head, steps) = bytes.split_first_chunk().unwrap();
    assert_eq!(answer(&secret(2), AES, *head, steps).err(), Some(Refused::Secret));
    assert_eq!(link((1, AES), (2, CHACHA)).err(), Some(Refused::Secret));
}

#[test]
fn whoever_changes_what_was_offered_or_chosen_breaks_the_call() {
    // Without the offer of AES.
    let (_, bytes) = Call::begin(&secret(1), AES).unwrap();
    let head = [bytes[0], CHACHA.bits()];
    assert_eq!(answer(&secret(1), AES, head, &bytes[CALL_HEAD + STEP..]).err(), Some(Refused::Secret));
    // With the other choice.
    let (call, bytes) = Call::begin(&secret(1), AES).unwrap();
    let (head, steps) = bytes.split_first_chunk().unwrap();
    let (_, mut answer) = answer(&secret(1), AES, *head, steps).unwrap();
    answer[1] = Suite::ChaCha as u8;
    assert_eq!(call.finish(&answer).err(), Some(Refused::Secret));
}

#[test]
fn any_changed_bit_of_a_call_or_its_answer_is_noticed() {
    for position in 0..CALL_HEAD + 2 * STEP {
        let (call, mut bytes) = Call::begin(&secret(1), AES).unwrap();
        bytes[position] ^= 0x04;
        let (head, steps) = bytes.split_first_chunk().unwrap();
        // The message of the suite that was not chosen is nobody's.
        let unused = (CALL_HEAD + STEP..).contains(&position);
        match call_len(*head).and_then(|_| answer(&secret(1), AES, *head, steps)) {
            Ok((_, mut reply)) => {
                assert!(unused, "byte {position}");
                reply[position % ANSWER] ^= 0x04;
                assert!(call.finish(&reply).is_err(), "byte {position}");
            }
            Err(_) => assert!(!unused, "byte {position}"),
        }
    }
}

#[test]
fn a_recorded_call_ends_before_its_proof() {
    let (call, recorded) = Call::begin(&secret(1), AES).unwrap();
    let (head, steps) = recorded.split_first_chunk().unwrap();
    let (_, first) = answer(&secret(1), AES, *head, steps).unwrap();
    let (_, proof) = call.finish(&first).unwrap();
    let (mut there, second) = answer(&secret(1), AES, *head, steps).unwrap();
    assert_ne!(first, second);
    assert_eq!(there.prove(proof.as_slice().try_into().unwrap()), Err(Refused::Secret));
}

#[test]
fn what_is_no_call_is_refused() {
    // A frame's first bytes, another version, suites that there are not.
    for head in [[1, 1], [1, 3], [2, 0], [2, 1], [2, 4], [2, 7], [3, 3], [b'G', b'E']] {
        assert_eq!(call_len(head), Err(Refused::NoCall), "{head:?}");
    }
}

#[test]
fn messages_are_changed_left_out_swapped_and_repeated_in_vain() {
    let (mut here, _) = link((1, AES), (1, AES)).unwrap();
    let one = sealed(&mut here, b"one", b"");
    for position in 0..one.len() {
        let (mut here, mut there) = link((1, AES), (1, AES)).unwrap();
        let mut wrong = sealed(&mut here, b"one", b"");
        wrong[position] ^= 0x20;
        let read = opened(&mut there, &[&wrong[..], &[0; 64]].concat());
        // A greater length waits for bytes that do not come.
        assert!(read.is_err() || read.is_ok_and(|plain| position == 1 && plain.is_empty()), "byte {position}");
    }
    for order in [&[1, 0][..], &[1], &[0, 0]] {
        let (mut here, mut there) = link((1, CHACHA), (1, CHACHA)).unwrap();
        let sent = [b"one", b"two"].map(|text| sealed(&mut here, text, b""));
        let bytes: Vec<u8> = order.iter().flat_map(|index| sent[*index].clone()).collect();
        assert_eq!(opened(&mut there, &bytes), Err(Malformed::Seal), "{order:?}");
    }
    let (mut here, _) = link((1, AES), (1, AES)).unwrap();
    let bytes = sealed(&mut here, b"back", b"");
    assert_eq!(opened(&mut here, &bytes), Err(Malformed::Seal), "a direction has its own key");
}

#[test]
fn a_message_that_is_empty_or_too_long_is_refused_by_its_length() {
    for length in [0, 1, TAG, TAG + MOST + 1, u16::MAX as usize] {
        let (_, mut there) = link((1, AES), (1, AES)).unwrap();
        let begin = (length as u16).to_le_bytes();
        assert_eq!(opened(&mut there, &begin), Err(Malformed::Bound("message length")), "{length}");
    }
}

#[test]
fn both_directions_outlive_their_first_keys() {
    for suites in [AES, CHACHA] {
        let (mut here, mut there) = link((1, suites), (1, suites)).unwrap();
        for round in 0..REKEY + 10 {
            let text = round.to_le_bytes();
            let bytes = sealed(&mut here, &text, b"");
            assert_eq!(opened(&mut there, &bytes).unwrap(), text);
        }
        let bytes = sealed(&mut there, b"the other way", b"");
        assert_eq!(opened(&mut here, &bytes).unwrap(), b"the other way");
    }
}

#[test]
fn what_is_written_is_not_to_be_seen_and_a_block_is_one_message() {
    let (mut here, mut there) = link((1, AES), (1, AES)).unwrap();
    let block = vec![b'x'; 32 * 1024];
    let bytes = sealed(&mut here, &[b'x'; 20], &block);
    assert_eq!(bytes.len(), 20 + block.len() + LENGTH + TAG);
    assert!(!bytes.windows(4).any(|window| window == b"xxxx"));
    assert_eq!(opened(&mut there, &bytes).unwrap().len(), 20 + block.len());
    assert!(there.opener.partial.capacity() == 0 && here.opener.partial.capacity() == 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_sealed_is_opened_however_the_stream_is_cut(
        parts in prop::collection::vec((0usize..80_000, 0usize..40_000), 1..6),
        cuts in prop::collection::vec(1usize..50_000, 1..20),
    ) {
        let (mut here, mut there) = link((1, AES), (1, AES)).unwrap();
        let (mut plain, mut bytes) = (Vec::new(), Vec::new());
        for (index, (first, second)) in parts.into_iter().enumerate() {
            let [first, second] = [vec![index as u8; first], vec![!(index as u8); second]];
            bytes.extend(sealed(&mut here, &first, &second));
            plain.extend([first, second].concat());
        }
        let (mut rest, mut got) = (&bytes[..], Vec::new());
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*cut));
            got.extend(opened(&mut there, now).unwrap());
            prop_assert!(there.opener.partial.len() <= LENGTH + MOST + TAG);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(got == plain);
    }

    #[test]
    fn any_stream_is_refused_or_waits_for_more(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        let (_, mut there) = link((1, CHACHA), (1, CHACHA)).unwrap();
        let read = opened(&mut there, &bytes);
        prop_assert!(read.is_err() || read == Ok(Vec::new()));
        if let Some((head, steps)) = bytes.split_first_chunk() {
            prop_assert!(answer(&secret(1), AES, *head, steps).is_err());
        }
    }
}
