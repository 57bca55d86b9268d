//! The stored bytes of format 1. From the first release on they are read for ever: a change is then a new
//! variant, and not another golden.

use std::collections::{BTreeMap, BTreeSet};

use openraft::alias::{EntryOf, StoredMembershipOf};
use openraft::{BasicNode, Membership};
use quorate_shares::ids::{BatchId, Epoch, KeyVersion, NodeId, ShareKeyGeneration};
use quorate_shares::order::Act;

use super::fixture::{CLUSTER, order, uid};
use crate::live::command::{Change, Command, CreateKey, FilledVersion, Ordered, RecordBytes, Seat};
use crate::live::place::{Ballot, LogPlace};
use crate::live::rows::{KeyRow, Row};
use crate::live::state::{EpochInfo, EpochPhase, RecordRef, Version};
use crate::live::voters::{ChangePurpose, Intent};
use crate::stored::format::{self, AppliedPosition, AppliedRow, Meta, MetaV1, encode};
use crate::stored::rows::StoredRow;
use crate::types::{Payload, Types};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16));
    pairs.collect::<Result<_, _>>().expect("hexadecimal")
}

fn place(index: u64) -> LogPlace {
    LogPlace { term: 3, node: NodeId(1), index }
}

#[test]
fn entries_keep_their_bytes() {
    let create = CreateKey {
        request: [1; 16],
        uid: uid(2),
        name: "billing/cards".parse().expect("a name"),
        tags: [("team".to_owned(), "x".to_owned())].into(),
        kcv: [3; 32],
        records: vec![RecordBytes(vec![4; 3])],
    };
    let voters: BTreeSet<u64> = [1, 2].into();
    let nodes: BTreeMap<u64, BasicNode> = voters.iter().map(|id| (*id, BasicNode::new(format!("n{id}")))).collect();
    let membership = Membership::new(vec![voters.clone()], nodes.clone()).expect("two voters");
    let joint = Membership::new(vec![voters, [1].into()], nodes).expect("two voters, or one");
    let revoke = Intent { purpose: ChangePurpose::Revoke, denies_at_append: true };
    let cases = [
        (Payload::Blank, "000301fb2c0100"),
        (Payload::Membership(None, membership), "000301fb2c0102010201020201026e3102026e32"),
        (Payload::Membership(Some(revoke), joint), "000301fb2c010302010202010201010201026e3102026e32"),
        (
            Payload::Command(Command::new(1_700_000_000_000, Change::CreateKey(create))),
            "000301fb2c0101fd0068e5cf8b0100000501010101010101010101010101010101020202020202020202020202020202020d62696c6c696e672f636172647301047465616d017803030303030303030303030303030303030303030303030303030303030303030103040404",
        ),
        (
            Payload::Command(Command::new(
                7,
                Change::SetAddresses { node: NodeId(2), addresses: vec!["n2:1".to_owned()] },
            )),
            "000301fb2c010107150201046e323a31",
        ),
    ];
    let act = Act::RotateKey { name: "k".parse().expect("a name"), expect: KeyVersion(1) };
    let filled = vec![FilledVersion { uid: uid(2), kcv: [3; 32], records: vec![RecordBytes(vec![4; 3])] }];
    let ordered = Ordered { order: order([1; 16], act), filled };
    let signed = hex(ordered.order.as_bytes());
    let golden =
        format!("000301fb2c01010716{:02x}{signed}01{}{}0103040404", signed.len() / 2, "02".repeat(16), "03".repeat(32));
    let ordered = Payload::Command(Command::new(7, Change::Ordered(ordered)));
    for (payload, golden) in cases.into_iter().chain([(ordered, golden.as_str())]) {
        let entry = EntryOf::<Types> { log_id: place(300).log_id(), payload };
        assert_eq!(hex(&format::encode_entry(&entry)), golden);
        assert_eq!(format::decode_entry(&unhex(golden)), Ok(entry));
    }
}

#[test]
fn meta_rows_keep_their_bytes() {
    let cases = [
        (MetaV1::Identity { cluster: CLUSTER, node: NodeId(1), schema: 1 }, "0000c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c10101"),
        (MetaV1::Vote(Ballot { term: 3, node: NodeId(2), committed: true }), "0001030201"),
        (MetaV1::Committed(Some(place(7))), "000201030107"),
        (MetaV1::Purged(place(7)), "0003030107"),
        (MetaV1::Truncations(2), "000402"),
        (MetaV1::Installing([5; 16]), "000505050505050505050505050505050505"),
        (MetaV1::Snapshot([5; 16]), "000605050505050505050505050505050505"),
    ];
    for (row, golden) in cases {
        assert_eq!(hex(&encode(&Meta::V1(row.clone()))), golden);
        assert_eq!(format::decode_meta(&unhex(golden)), Ok(row));
    }
    let position = AppliedPosition { last: Some(place(9).log_id()), ..AppliedPosition::default() };
    assert_eq!(hex(&encode(&AppliedRow::from(&position))), "010103010900000000");
    let intent = Some(Intent { purpose: ChangePurpose::Remove, denies_at_append: false });
    let changed = AppliedPosition {
        membership: StoredMembershipOf::<Types>::new(position.last, Membership::default()),
        intent,
        ..position.clone()
    };
    assert_eq!(hex(&encode(&AppliedRow::from(&changed))), "0101030109010301090000010100");
    // As it was written before memberships had an intent.
    let old = format::decode_applied(&unhex("0001030109000000")).and_then(AppliedPosition::try_from);
    assert_eq!(old, Ok(position));
}

#[test]
fn live_rows_keep_their_bytes() {
    let epoch = EpochInfo {
        epoch: Epoch(1),
        phase: EpochPhase::Active,
        threshold: 1,
        committee: vec![Seat { node: NodeId(1), skgen: ShareKeyGeneration(2) }],
        share_keys: Vec::new(),
        committee_hash: [6; 32],
        acks: [(NodeId(1), 4)].into(),
        activated_ms: 9,
        swept: Some((uid(2), KeyVersion(1))),
        reshared: 4,
        records: 0,
    };
    let record = RecordRef { epoch: Epoch(1), batch: BatchId([7; 16]), index: 8, verified: true };
    let version = Version {
        version: KeyVersion(1),
        created_ms: 9,
        kcv: [3; 32],
        ready: true,
        request: [1; 16],
        records: vec![record],
    };
    let name = "k".parse().expect("a name");
    let cases = [
        (Row::Clock(1_700_000_000_000), "0000fd0068e5cf8b010000"),
        (Row::Key(KeyRow { name, created_ms: 9, tags: BTreeMap::new() }), "0005016b0900"),
        (
            Row::Epoch(epoch),
            "00030101010101020006060606060606060606060606060606060606060606060606060606060606060101040901020202020202020202020202020202020104",
        ),
        (
            Row::Version(version),
            "00060109030303030303030303030303030303030303030303030303030303030303030301010101010101010101010101010101010101070707070707070707070707070707070801",
        ),
    ];
    for (row, golden) in cases {
        assert_eq!(hex(&StoredRow::from(row.clone()).encode()), golden);
        assert_eq!(StoredRow::decode(&unhex(golden)).map(Row::from), Ok(row));
    }
}
