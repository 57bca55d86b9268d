//! Ciphertexts: which open, which are refused, and that all refusals look alike.

use proptest::prelude::*;
use quorate_shares::context::{CONTEXT_BYTES_MAX, Context};
use quorate_shares::envelope::{self, Ciphertext, CiphertextHeader, CiphertextKind, PLAINTEXT_BYTES_MAX, Suite};
use quorate_shares::error::{CiphertextError, ContextError, FormatError, MessageTooLarge, Refused};
use quorate_shares::ids::KeyVersion;
use quorate_shares::master::{EncryptionRoot, MasterKey};
use quorate_shares::secret::Secret;
use sha2::{Digest, Sha256};

use crate::kit::{IDENTITY, rng};
use crate::vectors::unhex;

fn root() -> EncryptionRoot {
    MasterKey::from_secret(Secret::take(&mut [7; 32])).encryption_root(&IDENTITY)
}

fn header() -> CiphertextHeader {
    let name = "billing/cards".parse().unwrap();
    CiphertextHeader { kind: CiphertextKind::Message, suite: Suite::ChaCha20Poly1305, name, version: KeyVersion(3) }
}

fn context() -> Context {
    Context::new([("tenant", "42"), ("app", "web")]).unwrap()
}

fn sealed(plaintext: &[u8]) -> Ciphertext {
    envelope::seal(&root(), header(), &context(), plaintext, &mut rng(1)).unwrap()
}

/// T40: no byte of a message is returned before the whole message is authentic, not even its first, undamaged chunks.
#[test]
fn a_buffer_of_the_caller_gets_a_whole_message_or_nothing() {
    let plaintext: Vec<u8> = (0..50_000u32).map(|i| i as u8).collect();
    let good = sealed(&plaintext);
    let mut buffer = b"before".to_vec();
    envelope::open_into(&root(), &good, &context(), &mut buffer).unwrap();
    assert_eq!(buffer, [b"before", plaintext.as_slice()].concat());
    let mut damaged = good.to_binary();
    *damaged.last_mut().unwrap() ^= 1;
    let damaged = Ciphertext::parse_binary(&damaged).unwrap();
    let mut buffer = b"before".to_vec();
    assert_eq!(envelope::open_into(&root(), &damaged, &context(), &mut buffer), Err(Refused));
    assert_eq!(buffer, b"before");
}

/// The commented cases of `vectors/ciphertexts.txt`. Most are refusals. They must hold for ever.
#[test]
fn every_case_opens_or_refuses_as_it_says() {
    let mut seen = [0; 3];
    for case in include_str!("../../vectors/ciphertexts.txt").split("\n\n") {
        let field = |name: &str| {
            let prefix = format!("{name}: ");
            case.lines().filter_map(|line| line.strip_prefix(prefix.as_str()).map(str::to_owned)).collect::<Vec<_>>()
        };
        let Some(expect) = field("expect").pop() else { continue };
        let text: String = serde_json::from_str(&field("text")[0]).unwrap();
        let pairs = field("context");
        let pairs = pairs.iter().map(|pair| serde_json::from_str::<(String, String)>(pair).unwrap());
        let context = Context::new(pairs).unwrap();
        let parsed = Ciphertext::parse_text(&text);
        if expect == "malformed" {
            seen[0] += 1;
            assert!(parsed.is_err(), "{case}");
            continue;
        }
        let parsed = parsed.unwrap();
        assert_eq!(parsed.to_text(), text);
        assert_eq!(Ciphertext::parse_binary(&parsed.to_binary()).as_ref(), Ok(&parsed));
        let root = EncryptionRoot::from_secret(Secret::copy_of(&unhex(&field("root")[0])).unwrap());
        match (expect.as_str(), envelope::open(&root, &parsed, &context)) {
            ("opens", opened) => {
                seen[1] += 1;
                assert_eq!(Sha256::digest(opened.unwrap().as_slice()).as_slice(), unhex(&field("sha256")[0]), "{case}");
            }
            ("refused", opened) => {
                seen[2] += 1;
                assert_eq!(opened, Err(Refused), "{case}");
            }
            (other, _) => panic!("unknown expectation {other}"),
        }
    }
    assert!(seen[0] >= 40 && seen[1] >= 9 && seen[2] >= 25, "{seen:?}");
}

/// T35: flips every single bit of both forms. Without the check of the commitment, header and context would still be
/// bound, through the key; without the tag, the message would not.
#[test]
fn no_bit_can_be_flipped() {
    let sealed = sealed(b"hello world");
    let (root, context) = (root(), context());
    assert_eq!(envelope::open(&root, &sealed, &context).unwrap().as_slice(), b"hello world");
    let binary = sealed.to_binary();
    for bit in 0..binary.len() * 8 {
        let mut binary = binary.clone();
        binary[bit / 8] ^= 1 << (bit % 8);
        if let Ok(parsed) = Ciphertext::parse_binary(&binary) {
            assert_eq!(envelope::open(&root, &parsed, &context), Err(Refused), "bit {bit} of the binary form");
            assert_eq!(parsed.to_binary(), binary);
        }
    }
    let text = sealed.to_text().into_bytes();
    for bit in 0..text.len() * 8 {
        let mut text = text.clone();
        text[bit / 8] ^= 1 << (bit % 8);
        let Ok(text) = String::from_utf8(text) else { continue };
        if let Ok(parsed) = Ciphertext::parse_text(&text) {
            assert_eq!(envelope::open(&root, &parsed, &context), Err(Refused), "bit {bit} of the text form");
            assert_eq!(parsed.to_text(), text);
        }
    }
    for bit in 0..context.as_bytes().len() * 8 {
        let mut bytes = context.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(changed) = Context::parse(&bytes) {
            assert_eq!(envelope::open(&root, &sealed, &changed), Err(Refused), "bit {bit} of the context");
        }
    }
}

/// T37: combines each body with the name, version and kind of every other ciphertext.
#[test]
fn headers_cannot_be_exchanged() {
    let mut headers = Vec::new();
    for kind in [CiphertextKind::Message, CiphertextKind::DataKey] {
        for name in ["a", "b"] {
            for version in [1, 2] {
                let (name, version) = (name.parse().unwrap(), KeyVersion(version));
                headers.push(CiphertextHeader { kind, suite: Suite::ChaCha20Poly1305, name, version });
            }
        }
    }
    let root = root();
    let seal = |header: &CiphertextHeader| {
        envelope::seal(&root, header.clone(), &Context::empty(), b"secret", &mut rng(1)).unwrap().to_text()
    };
    let texts: Vec<String> = headers.iter().map(seal).collect();
    for (i, one) in texts.iter().enumerate() {
        for (j, other) in texts.iter().enumerate() {
            let (head, _) = one.rsplit_once(':').unwrap();
            let (_, body) = other.rsplit_once(':').unwrap();
            let mixed = Ciphertext::parse_text(&format!("{head}:{body}")).unwrap();
            assert_eq!(envelope::open(&root, &mixed, &Context::empty()).is_ok(), i == j);
        }
    }
}

/// T40: drops, repeats, swaps, cuts and adds chunks, at every boundary.
#[test]
fn chunks_cannot_be_moved() {
    let (root, context) = (root(), context());
    for length in [0, 1, 16_383, 16_384, 16_385, 32_768, 40_000, PLAINTEXT_BYTES_MAX] {
        let plaintext: Vec<u8> = (0..length).map(|at| at as u8).collect();
        let binary = sealed(&plaintext).to_binary();
        let (front, chunks) = binary.split_at(binary.len() - length - 16 * (length / 16_384 + 1));
        let chunks: Vec<&[u8]> = chunks.chunks(16_400).collect();
        let open = |chunks: &[&[u8]]| {
            let parsed = Ciphertext::parse_binary(&[front, &chunks.concat()].concat()).map_err(|_| Refused)?;
            envelope::open(&root, &parsed, &context)
        };
        assert_eq!(open(&chunks).unwrap().as_slice(), plaintext);
        for at in 0..chunks.len() {
            assert!(open(&chunks[..at]).is_err(), "cut before chunk {at} of {length} bytes");
            let mut dropped = chunks.clone();
            dropped.remove(at);
            assert!(open(&dropped).is_err(), "chunk {at} dropped of {length} bytes");
            let mut twice = chunks.clone();
            twice.insert(at, chunks[at]);
            assert!(open(&twice).is_err(), "chunk {at} twice in {length} bytes");
            let mut cut = chunks.clone();
            cut[at] = &chunks[at][..chunks[at].len() - 1];
            assert!(open(&cut).is_err(), "chunk {at} cut in {length} bytes");
            for other in 0..at {
                let mut exchanged = chunks.clone();
                exchanged.swap(at, other);
                assert!(open(&exchanged).is_err(), "chunks {at} and {other} exchanged in {length} bytes");
            }
        }
    }
}

/// The pure-Rust cipher opens what aws-lc-rs sealed, chunk by chunk, from the format alone.
#[test]
fn another_cipher_agrees() {
    use chacha20poly1305::aead::{Aead, KeyInit};
    let plaintext = vec![0xa7; 20_000];
    let binary = sealed(&plaintext).to_binary();
    let (header, body) = binary.split_at(11 + header().name.as_str().len());
    let (salt, rest) = body.split_at(24);
    let (commitment, sealed) = rest.split_at(32);
    let length = (header.len() as u16).to_be_bytes();
    let bound = Sha256::digest([b"quorate/v1/ctx\0", &length[..], header, context().as_bytes()].concat());
    let label: &[u8] = b"c2sp.org/chunked-encryption@v1+AEAD_CHACHA20_POLY1305\0";
    let root = MasterKey::from_secret(Secret::take(&mut [7; 32]));
    let root = root.root(&IDENTITY, quorate_shares::master::RootPurpose::Encrypt);
    let mut derived = [0; 76];
    let hkdf = hkdf::Hkdf::<Sha256>::from_prk(root.expose()).unwrap();
    hkdf.expand(&[label, salt, &bound[..]].concat(), &mut derived).unwrap();
    assert_eq!(commitment, &derived[44..]);
    let cipher = chacha20poly1305::ChaCha20Poly1305::new_from_slice(&derived[..32]).unwrap();
    let mut opened = Vec::new();
    for (index, chunk) in sealed.chunks(16_400).enumerate() {
        let mut nonce: [u8; 12] = derived[32..44].try_into().unwrap();
        nonce[11] ^= index as u8;
        opened.extend(cipher.decrypt(&nonce.into(), chunk).unwrap());
    }
    assert_eq!(opened, plaintext);
}

#[test]
fn messages_and_contexts_have_limits() {
    let too_long = vec![0; PLAINTEXT_BYTES_MAX + 1];
    let mut body = vec![1, 2, 3];
    let refused = envelope::seal_into(&root(), &header(), &context(), &too_long, &mut rng(1), &mut body);
    assert_eq!((refused, body.as_slice()), (Err(MessageTooLarge), [1, 2, 3].as_slice()));
    let longest = sealed(&too_long[1..]);
    let longer = [longest.to_binary(), vec![0]].concat();
    assert_eq!(Ciphertext::parse_binary(&longer), Err(CiphertextError::TooLarge));
    assert_eq!(Ciphertext::parse_text(&format!("{}AA", longest.to_text())), Err(CiphertextError::TooLarge));
    assert_eq!(Ciphertext::parse_text(&longest.to_text()), Ok(longest));
    let name = "k".repeat(127).parse().unwrap();
    let header = CiphertextHeader { name, version: KeyVersion(u32::MAX), ..header() };
    let sealed = envelope::seal(&root(), header, &context(), b"", &mut rng(1)).unwrap();
    assert_eq!(Ciphertext::parse_text(&sealed.to_text()).as_ref(), Ok(&sealed));
    assert_eq!(Ciphertext::parse_binary(&sealed.to_binary()), Ok(sealed));
}

/// T39: the part that is decided before any key is used.
#[test]
fn contexts_in_another_form_are_refused() {
    assert_eq!(Context::new([("a", "1"), ("a", "1")]), Err(ContextError::Duplicate));
    assert_eq!(Context::new([("a", "1"), ("b", "2"), ("a", "3")]), Err(ContextError::Duplicate));
    assert_eq!(Context::new([("", "1")]), Err(ContextError::EmptyName));
    let value = "v".repeat(CONTEXT_BYTES_MAX - 2 - 5);
    assert_eq!(Context::new([("n", &value)]).unwrap().as_bytes().len(), CONTEXT_BYTES_MAX);
    assert_eq!(Context::new([("n", value + "v")]), Err(ContextError::TooLarge));
    assert_eq!(Context::new([("b", "2"), ("a", "1")]), Context::new([("a", "1"), ("b", "2")]));
    assert_eq!(context().iter().collect::<Vec<_>>(), [("app", "web"), ("tenant", "42")]);
    assert_eq!(Context::parse(&[0, 0]), Ok(Context::empty()));
    for (bytes, why) in [
        (&[0][..], FormatError::Short("context")),
        (&[0, 0, 0], FormatError::Trailing(1)),
        (&[0, 1, 0, 0, 0, 0], FormatError::Invalid("order of names")),
        (&[0, 1, 0, 1, 0xff, 0, 0], FormatError::Invalid("text")),
        (&[0, 2, 0, 1, b'b', 0, 0, 0, 1, b'a', 0, 0], FormatError::Invalid("order of names")),
        (&[0, 2, 0, 1, b'a', 0, 0, 0, 1, b'a', 0, 0], FormatError::Invalid("order of names")),
        (&[0, 1, 0xff, 0xff, b'a', 0, 0], FormatError::Short("context")),
    ] {
        assert_eq!(Context::parse(bytes), Err(why));
    }
}

fn pairs() -> impl Strategy<Value = std::collections::BTreeMap<String, String>> {
    prop::collection::btree_map("\\PC{1,8}", "\\PC{0,8}", 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_is_sealed_opens_and_with_nothing_else(
        name in "[a-z0-9][a-z0-9_-]{0,20}",
        version in 1u32..,
        is_data_key in any::<bool>(),
        (pairs, others) in (pairs(), pairs()),
        plaintext in prop::collection::vec(any::<u8>(), 0..200),
        seed in any::<u64>(),
    ) {
        let kind = if is_data_key { CiphertextKind::DataKey } else { CiphertextKind::Message };
        let (name, version) = (name.parse().unwrap(), KeyVersion(version));
        let header = CiphertextHeader { kind, suite: Suite::ChaCha20Poly1305, name, version };
        let context = Context::new(&pairs).unwrap();
        let sealed = envelope::seal(&root(), header.clone(), &context, &plaintext, &mut rng(seed)).unwrap();
        prop_assert_eq!(sealed.header(), &header);
        let text = Ciphertext::parse_text(&sealed.to_text()).unwrap();
        let binary = Ciphertext::parse_binary(&sealed.to_binary()).unwrap();
        prop_assert_eq!(&text, &binary);
        let opened = envelope::open(&root(), &text, &context).unwrap();
        prop_assert_eq!(opened.as_slice(), &plaintext);
        prop_assert_eq!(Context::parse(context.as_bytes()), Ok(context));
        let other = Context::new(&others).unwrap();
        prop_assert_eq!(envelope::open(&root(), &text, &other).is_ok(), pairs == others);
    }

    #[test]
    fn no_text_and_no_bytes_are_read_in_two_ways(text in "qrt1:[a-z]{1,3}:[0-9]{1,3}:[md]1:[A-Za-z0-9_-]{90,110}") {
        if let Ok(parsed) = Ciphertext::parse_text(&text) {
            prop_assert_eq!(parsed.to_text(), text);
        }
    }
}
