//! Known answers: from an independent program (`vectors/gen.py`), and from the drafts that the formats build on.

use quorate_shares::context::Context;
use quorate_shares::envelope::{self, Ciphertext, CiphertextHeader, CiphertextKind, Suite};
use quorate_shares::error::{CiphertextError, ShareError};
use quorate_shares::ids::{BatchId, ClusterId, Epoch, KeyUid, KeyVersion, NodeId, ShareKeyGeneration};
use quorate_shares::kem::PublicKey;
use quorate_shares::lock::{
    Bundle, Lock, LockOpenCode, LockOpenReply, LockOpenRequest, LockParams, LockPeer, PinPlace, RosterPosition,
    ShareKey, StorageKey, open_piece,
};
use quorate_shares::master::{KeyIdentity, MasterKey, RootPurpose};
use quorate_shares::quorum::Quorum;
use quorate_shares::seal::{
    BatchHeader, BatchOpener, Committee, CommitteeMember, Dealer, RecordedShare, ShareRecord, share_commitment,
};
use quorate_shares::secret::Secret;
use quorate_shares::split::Threshold;
use quorate_shares::transit;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::kit::{self, Fixed};

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../vectors/vectors.json")).unwrap()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn bytes(value: &Value) -> Vec<u8> {
    unhex(value.as_str().unwrap())
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

fn secret(value: &Value) -> Secret<32> {
    Secret::take(&mut array(value))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

fn small(value: &Value) -> u8 {
    number(value).try_into().unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn identity(v: &Value) -> KeyIdentity {
    let version = KeyVersion(number(&v["version"]).try_into().unwrap());
    KeyIdentity { cluster: ClusterId(array(&v["cluster_id"])), uid: KeyUid(array(&v["key_uid"])), version }
}

fn master(v: &Value) -> MasterKey {
    MasterKey::from_secret(secret(&v["K"]))
}

#[test]
fn key_check_value_and_roots() {
    let v = vectors();
    let (key, identity) = (master(&v), identity(&v));
    assert_eq!(key.kcv(&identity), array(&v["kcv"]));
    let purposes = [
        ("enc", RootPurpose::Encrypt),
        ("det", RootPurpose::Deterministic),
        ("mac", RootPurpose::Mac),
        ("sign", RootPurpose::Sign),
    ];
    for (name, purpose) in purposes {
        assert!(key.root(&identity, purpose).same_as(&secret(&v["roots"][name])), "{name}");
    }
}

fn context(map: &Value) -> Context {
    Context::new(map.as_object().unwrap().iter().map(|(name, value)| (name, value.as_str().unwrap()))).unwrap()
}

#[test]
fn contexts() {
    for case in list(&vectors()["context"]) {
        let context = context(&case["map"]);
        assert_eq!(context.as_bytes(), bytes(&case["canonical"]));
        assert_eq!(Context::parse(context.as_bytes()).as_ref(), Ok(&context));
    }
}

#[test]
fn ciphertexts_to_the_byte() {
    let v = vectors();
    let root = master(&v).encryption_root(&identity(&v));
    for case in list(&v["seal"]) {
        if case["suite"] != "1" {
            if let Some(text) = case["text"].as_str() {
                assert_eq!(Ciphertext::parse_text(text), Err(CiphertextError::Unknown));
            }
            continue;
        }
        let kind = if case["kind"] == "d" { CiphertextKind::DataKey } else { CiphertextKind::Message };
        let (name, version) = (v["name"].as_str().unwrap().parse().unwrap(), identity(&v).version);
        let header = CiphertextHeader { kind, suite: Suite::ChaCha20Poly1305, name, version };
        let length = number(&case["pt_len"]) as usize;
        let plaintext = match case["pt"].as_str() {
            Some(hex) => unhex(hex),
            None => vec![[b'A', b'B', b'C'][usize::from(length > 16_383) + usize::from(length > 16_384)]; length],
        };
        assert_eq!(Sha256::digest(&plaintext).as_slice(), bytes(&case["pt_sha256"]));
        let context = context(&case["context"]);
        let mut salt = Fixed(bytes(&case["salt"]).into());
        let sealed = envelope::seal(&root, header, &context, &plaintext, &mut salt).unwrap();
        let binary = sealed.to_binary();
        assert_eq!(binary.len() - length, number(&case["overhead_binary"]) as usize);
        let body = &binary[binary.len() - length - number(&case["overhead_body"]) as usize..];
        assert_eq!(Sha256::digest(body).as_slice(), bytes(&case["body_sha256"]));
        if let Some(text) = case["text"].as_str() {
            assert_eq!(sealed.to_text(), text);
            assert_eq!(binary, [bytes(&case["header"]), bytes(&case["body"])].concat());
        }
        assert_eq!(Ciphertext::parse_text(&sealed.to_text()).as_ref(), Ok(&sealed));
        assert_eq!(Ciphertext::parse_binary(&binary).as_ref(), Ok(&sealed));
        assert_eq!(*envelope::open(&root, &sealed, &context).unwrap(), plaintext);
    }
}

/// Every pair, or triple, of the shares that Python dealt rebuilds the key through `Quorum`.
#[test]
fn shares_and_commitments() {
    let v = vectors();
    let identity = identity(&v);
    for (name, needed, holders) in [("shamir_2of3", 2, 3u8), ("shamir_3of5", 3, 5)] {
        let members = kit::holders(holders.into(), 1);
        let committee = kit::committee(1, needed, &members);
        let threshold = Threshold::new(needed, holders).unwrap();
        let share = |x: u8| secret(&v[name]["shares"][x.to_string()]);
        let mut shares = Vec::new();
        for x in 1..=holders {
            let commitment = array(&v[name]["commits_epoch1_batch0"][x.to_string()]);
            let computed = share_commitment(&identity, BatchId([0; 16]), Epoch(1), threshold, x, &share(x));
            assert_eq!(computed, commitment);
            shares.push(RecordedShare { commitment, sealed: [0; 48] });
        }
        let KeyIdentity { uid, version, .. } = identity;
        let (batch, epoch) = (BatchId([0; 16]), Epoch(1));
        let record = ShareRecord { batch, index: 0, epoch, uid, version, threshold, shares, recovery: None };
        for mask in 0..1u32 << holders {
            if mask.count_ones() != u32::from(needed) {
                continue;
            }
            let mut quorum = Quorum::new(record.clone(), identity, &committee, array(&v["kcv"])).unwrap();
            for x in (1..=holders).filter(|x| mask >> (x - 1) & 1 == 1) {
                quorum.add(members[usize::from(x) - 1].member.node, x, share(x)).unwrap();
            }
            assert_eq!(quorum.close().unwrap().kcv(&identity), array(&v["kcv"]));
        }
    }
}

#[test]
fn committees_batches_and_records() {
    let v = vectors();
    let (identity, kcv) = (identity(&v), array(&v["kcv"]));
    for case in list(&v["sealing"]) {
        let member = |holder: &Value| {
            let public_key = PublicKey::of_seed(&secret(&holder["seed"]));
            assert_eq!(Sha256::digest(public_key.as_bytes()).as_slice(), bytes(&holder["pk_sha256"]));
            CommitteeMember {
                node: NodeId(number(&holder["node"])),
                generation: generation(&holder["skgen"]),
                public_key,
            }
        };
        let members: Vec<CommitteeMember> = list(&case["holders"]).iter().rev().map(member).collect();
        let committee = Committee::new(Epoch(number(&case["epoch"])), small(&case["t"]), members).unwrap();

        let header = BatchHeader::parse(&bytes(&case["header"])).unwrap();
        assert_eq!(header.encode(), bytes(&case["header"]));
        let records: Vec<ShareRecord> = list(&case["records"])
            .iter()
            .map(|record| {
                let parsed = ShareRecord::parse(&bytes(&record["record"])).unwrap();
                assert_eq!(parsed.encode(), bytes(&record["record"]));
                assert_eq!(u64::from(parsed.index), number(&record["index"]));
                parsed
            })
            .collect();

        if case["recovery_seed"].is_string() {
            // No version writes these yet, but this one reads them. It does not know a committee that names a recovery
            // key.
            assert!(header.recovery.is_some() && records.iter().all(|record| record.recovery.is_some()));
            let holder = &committee.holders()[0].member;
            let seed = secret(&case["holders"][0]["seed"]);
            let refused = BatchOpener::open(&header, &committee, holder.node, holder.generation, &seed);
            assert_eq!(refused.err(), Some(ShareError::Committee));
            continue;
        }
        assert_eq!(committee.hash(identity.cluster), array(&case["committee_hash"]));

        // With the same randomness, Rust deals the same header as Python.
        let mut randomness = bytes(&case["batch_id"]);
        list(&case["randomness"]).iter().for_each(|encapsulation| randomness.extend(bytes(encapsulation)));
        randomness.extend([0; 32]);
        let mut fixed = Fixed(randomness.into());
        let mut dealer = Dealer::open(identity.cluster, NodeId(number(&case["dealer"])), &committee, &mut fixed);
        assert!(fixed.0.is_empty());
        assert_eq!(dealer.header(), &header);
        if case["t"] == 1 {
            // A dealing without coefficients draws no randomness, so the whole record is a known answer.
            assert_eq!(dealer.deal(&master(&v), &identity, &kcv).unwrap(), records[0]);
        }

        for (holder, place) in list(&case["holders"]).iter().zip(committee.holders()) {
            let (node, generation) = (place.member.node, place.member.generation);
            let opener = BatchOpener::open(&header, &committee, node, generation, &secret(&holder["seed"])).unwrap();
            for (parsed, record) in records.iter().zip(list(&case["records"])) {
                let share = opener.open_share(parsed, &identity, &kcv).unwrap();
                assert!(share.same_as(&secret(&record["shares"][usize::from(place.x) - 1])));
            }
            // Well sealed, but with commitments to other shares: only the check after the opening detects it.
            let lying = ShareRecord::parse(&bytes(&case["lying_record"])).unwrap();
            assert_eq!(opener.open_share(&lying, &identity, &kcv).err(), Some(ShareError::Commitment));
        }
    }
}

fn generation(value: &Value) -> ShareKeyGeneration {
    ShareKeyGeneration(number(value))
}

#[test]
fn locks_and_their_exchange() {
    let v = vectors();
    let cluster = identity(&v).cluster;
    for case in list(&v["locks"]) {
        let params =
            LockParams { cluster, node: NodeId(number(&case["node"])), generation: number(&case["generation"]) };
        let (pin, section, needed) = (bytes(&case["pin"]), bytes(&case["section"]), small(&case["u"]));
        let text = || String::from_utf8(bytes(&case["pin_field"])).unwrap();
        let place = match number(&case["pin_kind"]) {
            0 => PinPlace::Inline(bytes(&case["pin_field"])),
            1 => PinPlace::File(text()),
            _ => PinPlace::Credential(text()),
        };
        let lock = Lock::parse(&section).unwrap();
        assert_eq!(lock.encode(), section);
        assert_eq!((lock.pin(), lock.needed(), lock.generation()), (&place, needed, params.generation));

        let exporter_key = secret(&case["exporter_key"]);
        let position = &case["roster"];
        let roster = RosterPosition {
            term: number(&position["term"]),
            leader: NodeId(number(&position["leader"])),
            index: number(&position["index"]),
        };
        let denied = LockOpenReply::refuse(LockOpenCode::Denied, roster).unwrap();
        assert_eq!(denied.encode(), bytes(&case["denied_reply"]));
        assert_eq!(LockOpenReply::parse(&denied.encode()), Ok(denied));

        let mut pieces = Vec::new();
        for (peer, named) in list(&case["peers"]).iter().zip(lock.pieces()) {
            let request = lock.request(&params, NodeId(number(&peer["peer"])), array(&case["boot_nonce"])).unwrap();
            assert_eq!(request.encode(), bytes(&peer["request"]));
            assert_eq!(request.hash(), array(&peer["request_sha256"]));
            let request = LockOpenRequest::parse(&bytes(&peer["request"])).unwrap();
            let piece = open_piece(&secret(&peer["seed"]), &request).unwrap();
            assert!(piece.same_as(&secret(&peer["piece"])));
            let reply = LockOpenReply::grant(roster, &piece, &exporter_key);
            assert_eq!(reply.encode(), bytes(&peer["reply"]));
            let reply = LockOpenReply::parse(&bytes(&peer["reply"])).unwrap();
            pieces.push((named.x, reply.open(&exporter_key).unwrap()));
        }

        for mask in 0..1u32 << pieces.len() {
            if mask.count_ones() != u32::from(needed) {
                continue;
            }
            let some = pieces.iter().filter(|(x, _)| mask >> (x - 1) & 1 == 1);
            let some: Vec<(u8, Secret<32>)> = some.map(|(x, piece)| (*x, piece.duplicate())).collect();
            let bundle = lock.open(&params, &some, &pin).unwrap();
            assert!(bundle.op_seed.same_as(&secret(&case["op_seed"])));
            for (storage, expected) in bundle.storage_keys.iter().zip(list(&case["storage_keys"])) {
                assert!(storage.number == small(&expected[0]) && storage.key.same_as(&secret(&expected[1])));
            }
            for (share, expected) in bundle.share_keys.iter().zip(list(&case["share_keys"])) {
                assert!(share.generation == generation(&expected[0]) && share.seed.same_as(&secret(&expected[1])));
            }
            assert_eq!((bundle.storage_keys.len(), bundle.share_keys.len()), (2, 2));
        }

        if needed <= 1 {
            // Without coefficients the whole lock is a known answer: w, an unused seed, then the encapsulations.
            let mut randomness = if needed == 0 { Vec::new() } else { [bytes(&case["w"]), vec![0; 32]].concat() };
            let peers: Vec<LockPeer> = list(&case["peers"])
                .iter()
                .map(|peer| {
                    randomness.extend(bytes(&peer["randomness"]));
                    let (peer, key_number, seed) = (&peer["peer"], number(&peer["keyno"]), secret(&peer["seed"]));
                    LockPeer { peer: NodeId(number(peer)), key_number, public_key: PublicKey::of_seed(&seed) }
                })
                .collect();
            let mut fixed = Fixed(randomness.into());
            let sealed = Lock::seal(&params, needed, place, &pin, &peers, &bundle(case), &mut fixed).unwrap();
            assert!(fixed.0.is_empty());
            assert_eq!(sealed.encode(), section);
        }
    }
}

fn bundle(case: &Value) -> Bundle {
    let storage = |pair: &Value| StorageKey { number: small(&pair[0]), key: secret(&pair[1]) };
    let share = |pair: &Value| ShareKey { generation: generation(&pair[0]), seed: secret(&pair[1]) };
    Bundle {
        op_seed: secret(&case["op_seed"]),
        storage_keys: list(&case["storage_keys"]).iter().map(storage).collect(),
        share_keys: list(&case["share_keys"]).iter().map(share).collect(),
    }
}

#[test]
fn shares_on_their_way() {
    for case in list(&vectors()["transit"]) {
        let (key, share, request) = (secret(&case["key"]), secret(&case["share"]), bytes(&case["request"]));
        let (direction, counter) = (number(&case["direction"]).try_into().unwrap(), number(&case["counter"]));
        let place = transit::Place { direction, counter };
        assert_eq!(transit::seal(&key, place, &request, &share).as_slice(), bytes(&case["sealed"]));
        assert!(transit::open(&key, place, &request, &bytes(&case["sealed"])).unwrap().same_as(&share));
    }
}

/// The vectors of the draft: a seed gives the public key that the draft says.
#[test]
fn x_wing_keys_of_the_draft() {
    let v: Value = serde_json::from_str(include_str!("../../vectors/x-wing.json")).unwrap();
    for case in list(&v["vectors"]) {
        let key = PublicKey::of_seed(&secret(&case["seed"]));
        assert_eq!(key.as_bytes().as_slice(), bytes(&case["pk"]));
        assert_eq!(PublicKey::parse(&bytes(&case["pk"])), Ok(key));
    }
}
