//! Each order survives its bytes, and no other bytes are one.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::codec;
use crate::ids::{KeyName, KeyVersion, NodeName, TAG_BYTES_MAX, TAGS_MAX};

const KNOWN: &str = "\
    514f5231010101010101010101010101010101010100000001ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446\
    d22c0909090909090909090909090909090900000000000003e800000000000497c80000000000000000050000000000000003026e3301\
    010000000000000002026e32a0c23fbbcd8bb33a45cf1c7256b5ae486b621e862b67de06e169e60a5ef03dd41f1742f080a2f795c8a66e\
    8ededb896f32c54179aed95e2b9eb1616be697f908";

fn seed(byte: u8) -> Secret<32> {
    Secret::take(&mut [byte; 32])
}

fn node(id: u64) -> NamedNode {
    NamedNode { id: NodeId(id), name: format!("n{id}").parse().expect("a name") }
}

fn key(name: &str) -> NewKey {
    NewKey { name: name.parse().expect("a name"), tags: BTreeMap::new() }
}

fn order(act: Act) -> Order {
    Order {
        cluster: ClusterId([1; 16]),
        incarnation: 1,
        signer: PublicKey::of_seed(&seed(7)),
        request: [9; 16],
        issued_ms: 1_000,
        expires_ms: 1_000 + LIFETIME_MS,
        target: act.is_local().then_some(NodeId(2)),
        act,
    }
}

/// One order of each kind.
fn acts() -> Vec<Act> {
    let tags = [("team".to_owned(), "billing".to_owned()), ("zone".to_owned(), String::new())].into();
    let holder = || LabelledKey { key: PublicKey::of_seed(&seed(8)), label: "Ada Lovelace".to_owned() };
    vec![
        Act::CreateKeys { keys: vec![NewKey { tags, ..key("billing/cards") }, key("a")] },
        Act::RotateKey { name: "billing/cards".parse().expect("a name"), expect: KeyVersion(3) },
        Act::InviteNode { proof_key: ProofKey([3; 32]), name: None, ttl_ms: 60_000 },
        Act::InviteNode { proof_key: ProofKey([3; 32]), name: Some(node(4).name), ttl_ms: u64::MAX },
        Act::ReplaceNode { gone: node(3), invitation: [4; 32] },
        Act::RemoveNode { node: node(3), accept_no_redundancy: true, abandon: vec![node(1), node(2)] },
        Act::RevokeNodes { nodes: vec![node(2), node(3)], expect_back: vec![node(5)] },
        Act::SetAddresses { node: node(1), addresses: vec!["10.0.0.1:7250".to_owned(), "[fd00::1]:1".to_owned()] },
        Act::Seal { sealed: true },
        Act::Seal { sealed: false },
        Act::Admit { node: node(2) },
        Act::Disarm { codes: None },
        Act::Disarm { codes: Some(BTreeSet::new()) },
        Act::Disarm { codes: Some(["clock".to_owned(), "two_copies".to_owned()].into()) },
        Act::AddOperator(holder()),
        Act::RemoveOperator { key: PublicKey([7; 32]) },
    ]
}

#[test]
fn each_order_survives_its_bytes_and_is_verified() {
    for act in acts() {
        let order = order(act);
        let signed = order.clone().sign(&seed(7)).expect("a good order");
        let read = SignedOrder::parse(signed.as_bytes()).expect("our own bytes");
        assert_eq!(read, signed);
        assert_eq!(read.verify().expect("our own signature").order(), &order);
        let sent = codec::encode(&signed).expect("fits");
        assert_eq!(codec::decode::<SignedOrder, { 2 * ORDER_BYTES_MAX }>(&sent), Ok(signed));
    }
}

/// Every bit of an order is signed, and bytes that can be read have one meaning.
#[test]
fn no_bit_of_an_order_can_be_changed() {
    for act in acts() {
        let signed = order(act).sign(&seed(7)).expect("a good order");
        for bit in 0..8 * signed.as_bytes().len() {
            let mut bytes = signed.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(changed) = SignedOrder::parse(&bytes) {
                assert_eq!(changed.verify().map(|_| ()), Err(BadSignature), "bit {bit} of {signed:?}");
            }
        }
        for end in 0..signed.as_bytes().len() {
            assert!(SignedOrder::parse(&signed.as_bytes()[..end]).is_err(), "cut at {end}");
        }
        assert!(SignedOrder::parse(&[signed.as_bytes(), &[0]].concat()).is_err(), "one byte more");
    }
}

/// The bytes of FORMATS 15, and a signature that another implementation made (OpenSSL, by Python's `cryptography`).
#[test]
fn an_order_has_the_bytes_of_formats() {
    let signed = order(Act::RemoveNode { node: node(3), accept_no_redundancy: true, abandon: vec![node(2)] });
    let hex: String =
        signed.sign(&seed(7)).expect("a good order").as_bytes().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, KNOWN);
}

#[test]
fn another_key_signs_nothing_for_the_signer() {
    let order = order(Act::Seal { sealed: true });
    assert_eq!(order.clone().sign(&seed(8)), Err(FormatError::Invalid("signer")));
    let mine = order.clone().sign(&seed(7)).expect("the control");
    let theirs = Order { signer: PublicKey::of_seed(&seed(8)), ..order }.sign(&seed(8)).expect("their own");
    let mut mixed = mine.as_bytes().to_vec();
    let at = mixed.len() - SIGNATURE_BYTES;
    mixed[at..].copy_from_slice(&theirs.as_bytes()[at..]);
    assert_eq!(SignedOrder::parse(&mixed).expect("it reads").verify().map(|_| ()), Err(BadSignature));
}

#[test]
fn what_no_signer_may_write_is_refused() {
    let refused = |order: Order| order.sign(&seed(7)).expect_err("refused");
    let good = || order(Act::RotateKey { name: "k".parse().expect("a name"), expect: KeyVersion(1) });
    good().sign(&seed(7)).expect("the control");
    refused(Order { incarnation: 0, ..good() });
    refused(Order { target: Some(NodeId(1)), ..good() });
    refused(Order { target: None, ..order(Act::Seal { sealed: true }) });
    refused(Order { target: Some(NodeId(0)), ..order(Act::Seal { sealed: true }) });
    refused(Order { expires_ms: 1_000, ..good() });
    refused(Order { expires_ms: 999, ..good() });
    refused(Order { expires_ms: 1_001 + LIFETIME_MAX_MS, ..good() });
    good().sign(&seed(7)).expect("the control");
    let label = |label: &str| {
        order(Act::AddOperator(LabelledKey { key: PublicKey::of_seed(&seed(8)), label: label.to_owned() }))
            .sign(&seed(7))
    };
    label(&"l".repeat(LABEL_BYTES_MAX)).expect("the control");
    for bad in ["", "a\nb", "a\u{1b}b", &"l".repeat(LABEL_BYTES_MAX + 1)] {
        label(bad).expect_err("refused");
    }
    let mut weak = [0; 32];
    weak[0] = 1;
    refused(order(Act::AddOperator(LabelledKey { key: PublicKey(weak), label: "x".to_owned() })));
    for bad in [
        Act::CreateKeys { keys: Vec::new() },
        Act::CreateKeys { keys: vec![key("a"), key("a")] },
        Act::CreateKeys { keys: (0..=KEYS_MAX).map(|number| key(&number.to_string())).collect() },
        Act::CreateKeys { keys: vec![NewKey { tags: [(String::new(), String::new())].into(), ..key("a") }] },
        Act::CreateKeys { keys: vec![NewKey { tags: [("x".repeat(256), String::new())].into(), ..key("a") }] },
        Act::RotateKey { name: "k".parse().expect("a name"), expect: KeyVersion(0) },
        Act::RevokeNodes { nodes: Vec::new(), expect_back: Vec::new() },
        Act::RevokeNodes { nodes: vec![node(2), node(1)], expect_back: Vec::new() },
        Act::RevokeNodes { nodes: vec![node(2), node(2)], expect_back: Vec::new() },
        Act::RevokeNodes { nodes: (1..=10).map(node).collect(), expect_back: Vec::new() },
        Act::RemoveNode { node: NamedNode { id: NodeId(0), ..node(1) }, accept_no_redundancy: false, abandon: vec![] },
        Act::Admit { node: NamedNode { id: NodeId(0), ..node(1) } },
        Act::SetAddresses { node: node(1), addresses: Vec::new() },
        Act::SetAddresses { node: node(1), addresses: vec!["nowhere".to_owned()] },
        Act::Disarm { codes: Some((0..=CODES_MAX).map(|code| format!("{code:03}")).collect()) },
    ] {
        refused(order(bad));
    }
}

/// As many keys as one order makes, with ordinary names.
#[test]
fn a_thousand_keys_fit_one_order() {
    let keys = (0..KEYS_MAX).map(|number| key(&format!("teams/billing/regions/europe/customers/{number:036}")));
    let signed = order(Act::CreateKeys { keys: keys.collect() }).sign(&seed(7)).expect("it fits");
    assert!(signed.as_bytes().len() < ORDER_BYTES_MAX);
    let tags: BTreeMap<_, _> =
        (0..TAGS_MAX).map(|tag| (format!("{tag:0TAG_BYTES_MAX$}"), "v".repeat(TAG_BYTES_MAX))).collect();
    let largest = |count: usize| {
        let keys = (0..count).map(|number| NewKey { tags: tags.clone(), ..key(&format!("{number:0127}")) });
        order(Act::CreateKeys { keys: keys.collect() }).sign(&seed(7))
    };
    largest(1).expect("the largest key fits");
    assert!(matches!(largest(20), Err(FormatError::TooMany { .. })));
}

#[test]
fn no_order_prints_a_name_or_the_key_of_an_invitation() {
    let rotate =
        Act::RotateKey { name: KeyName::try_from("canary".to_owned()).expect("a name"), expect: KeyVersion(1) };
    let printed = format!("{:?}", order(rotate).sign(&seed(7)).expect("a good order"));
    assert!(printed.starts_with("SignedOrder(key.rotate, ") && !printed.contains("canary"), "{printed}");
    let act = Act::InviteNode { proof_key: ProofKey([0xab; 32]), name: None::<NodeName>, ttl_ms: 1 };
    let printed = format!("{:?}", order(act));
    assert!(!printed.contains("171") && !printed.to_lowercase().contains("abab"), "{printed}");
}

proptest! {
    /// Whatever bytes come: they are refused, or they are exactly what a signer would write.
    #[test]
    fn bytes_that_are_read_are_written_the_same(act in 0usize..16, at in 0usize..400, byte: u8) {
        let signed = order(acts().swap_remove(act)).sign(&seed(7)).expect("a good order");
        let mut bytes = signed.as_bytes().to_vec();
        let length = bytes.len();
        bytes[at % length] = byte;
        if let Ok(read) = SignedOrder::parse(&bytes) {
            let mut written = Order { signer: PublicKey::of_seed(&seed(7)), ..read.unverified().clone() };
            let own = written.signer == read.unverified().signer;
            written.signer = PublicKey::of_seed(&seed(7));
            let again = written.sign(&seed(7)).expect("what is read can be signed");
            let unsigned = length - SIGNATURE_BYTES;
            prop_assert!(!own || again.as_bytes()[..unsigned] == bytes[..unsigned]);
        }
    }
}
