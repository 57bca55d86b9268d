//! The bytes of a vault's body, and the bodies that are refused.

use std::collections::BTreeMap;

use quorate_shares::ids::{ClusterId, NodeId};
use quorate_shares::kem::PublicKey;
use quorate_shares::lock::{Bundle, Lock, LockParams, LockPeer, PinPlace};
use quorate_shares::order::LabelledKey;
use quorate_shares::secret::Secret;
use quorate_shares::signature;

use crate::base::config::{self, Config};
use crate::vault::invitation::{InvitationKey, Inviter};
use crate::vault::layout::{Address, FormatError};
use crate::vault::{
    DENIALS, FirstFounder, Flags, FounderKeys, Founding, FoundingStep, HeldKey, IDENTITY, Invited, OpenInvitation,
    Role, Vault,
    roster::{self, Revoked, RosterMember},
};

fn seed(byte: u8) -> Secret<32> {
    Secret::take(&mut [byte; 32])
}

fn address() -> Address {
    "127.0.0.1:7250".parse().expect("a valid address")
}

fn founding(role: Role) -> Founding {
    Founding { attempt: 2, name: "n1".parse().expect("a valid name"), addresses: vec![address()], role }
}

fn first_founder() -> Role {
    let so_far = [1, 2].map(|id| FounderKeys {
        node: NodeId(id),
        boot_pk: [id as u8; 32],
        op_pk: [id as u8 + 10; 32],
        share_pk: PublicKey::of_seed(&seed(id as u8)),
        name: format!("n{id}").parse().expect("a valid name"),
        addresses: vec![address()],
    });
    let invitations = [(7, Some([2; 32])), (8, None)].map(|(byte, bound)| OpenInvitation {
        key: InvitationKey::from(seed(byte)),
        expires_ms: 1_000,
        bound,
    });
    Role::FirstFounder(FirstFounder {
        founders: 3,
        threshold: 2,
        invitations: invitations.into(),
        operator: LabelledKey { key: signature::PublicKey([9; 32]), label: "Ada".to_owned() },
        so_far: so_far.into(),
        step: FoundingStep::Locking,
    })
}

fn invited() -> Invited {
    Invited { key: InvitationKey::from(seed(7)), inviters: vec![Inviter { boot_pk: [1; 32], address: address() }] }
}

fn lock() -> Lock {
    let params = LockParams { cluster: ClusterId([0xc1; 16]), node: NodeId(1), generation: 4 };
    let peers = [2, 3].map(|peer| LockPeer {
        peer: NodeId(peer),
        key_number: 5,
        public_key: PublicKey::of_seed(&seed(peer as u8)),
    });
    let bundle = Bundle { op_seed: seed(1), storage_keys: Vec::new(), share_keys: Vec::new() };
    let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
    Lock::seal(&params, 1, PinPlace::Inline(vec![7; 32]), &[7; 32], &peers, &bundle, &mut rng).expect("two peers")
}

/// A vault with something in every section.
pub(super) fn full() -> Vault {
    let mut vault = Vault::new(ClusterId([0xc1; 16]), seed(0xb0));
    vault.identity.node = Some(NodeId(1));
    vault.roster = roster::tests::sample();
    for peer in [3, 2] {
        let held = vault.held_for_mut(NodeId(peer));
        (held.last_gen, held.committed_key_number, held.grace_left_s, held.away_s) = (4, 5, 60, 600);
        held.keys = (5..=7).map(|key_number| HeldKey { key_number, seed: seed(0xe0 + key_number as u8) }).collect();
    }
    vault.lock = Some(lock());
    vault.founding = Some(founding(first_founder()));
    vault.flags = Flags { sealed: true, revoked: true };
    let by = quorate_raft::LogPlace { term: 3, node: NodeId(1), index: 41 };
    vault.denials = vec![quorate_raft::Denial { node: NodeId(3), by }];
    vault
}

fn sections(body: &[u8]) -> BTreeMap<u8, Vec<u8>> {
    let (mut sections, mut rest) = (BTreeMap::new(), body);
    while let [tag, l0, l1, l2, l3, behind @ ..] = rest {
        let (bytes, next) = behind.split_at(u32::from_be_bytes([*l0, *l1, *l2, *l3]) as usize);
        sections.insert(*tag, bytes.to_vec());
        rest = next;
    }
    sections
}

fn section(tag: u8, bytes: &[u8]) -> Vec<u8> {
    [&[tag][..], &(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

fn body(sections: &BTreeMap<u8, Vec<u8>>) -> Vec<u8> {
    sections.iter().flat_map(|(tag, bytes)| section(*tag, bytes)).collect()
}

fn refusal(body: &[u8]) -> FormatError {
    Vault::parse(body).err().expect("the vault is refused")
}

#[test]
fn every_role_survives_its_bytes() {
    for role in [first_founder(), Role::Founder(invited()), Role::Joiner(invited())] {
        let mut vault = full();
        vault.founding = Some(founding(role));
        let body = vault.encode().expect("a small vault");
        let again = Vault::parse(&body).expect("it was just encoded").encode().expect("as small as before");
        assert_eq!(*body, *again);
    }
    let empty = Vault::new(ClusterId([1; 16]), seed(2)).encode().expect("a small vault");
    let empty = Vault::parse(&empty).expect("it was just encoded");
    assert!(empty.identity.node.is_none() && empty.held.is_empty() && empty.founding.is_none());
}

#[test]
fn the_bytes_are_the_documented_ones() {
    let sections = sections(&full().encode().expect("a small vault"));
    assert_eq!(sections.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    let identity = [&[0xc1; 16][..], &[0, 0, 0, 0, 0, 0, 0, 1], &[0xb0; 32]].concat();
    assert_eq!(sections[&1], identity);
    assert_eq!(sections[&3][..8], [0, 0, 0, 0, 0, 0, 0, 4], "the lock begins with its generation");
    assert_eq!(sections[&6], [3]);
    let numbers = |numbers: [u64; 4]| numbers.map(u64::to_be_bytes).concat();
    assert_eq!(sections[&7], [vec![1], numbers([3, 3, 1, 41])].concat());
    let keys =
        (5..=7u8).flat_map(|key_number| [&[0, 0, 0, 0, 0, 0, 0, key_number][..], &[0xe0 + key_number; 32]].concat());
    let held = [
        &[0, 0, 0, 0, 0, 0, 0, 2][..],
        &[0, 0, 0, 0, 0, 0, 0, 4],
        &[0, 0, 0, 0, 0, 0, 0, 5],
        &[0, 60],
        &[0, 0, 2, 88],
        &[3],
        &keys.collect::<Vec<_>>(),
    ]
    .concat();
    assert_eq!(sections[&4][..held.len()], held);
    assert_eq!(sections[&4].len(), 2 * held.len());
    let founding = &sections[&5];
    assert_eq!(founding[..8], [0, 0, 0, 2, 1, 2, b'n', b'1']);
    let after_addresses = 8 + 1 + 1 + address().as_str().len();
    assert_eq!(founding[after_addresses..][..3], [3, 2, 2]);
    assert_eq!(founding.last(), Some(&2));
}

#[test]
fn unknown_duplicate_missing_and_misplaced_sections_are_refused() {
    let body = full().encode().expect("a small vault");
    let unknown = [&body[..], &section(8, b"from the future")].concat();
    assert_eq!(refusal(&unknown), FormatError::Invalid("section: this version does not know it"));
    let twice = [&body[..], &section(DENIALS, &[0])].concat();
    assert_eq!(refusal(&twice), FormatError::Invalid("order of sections"));
    let misplaced = [&body[..], &section(IDENTITY, &[0; 56])].concat();
    assert_eq!(refusal(&misplaced), FormatError::Invalid("order of sections"));
    for tag in [1, 2, 4, 6] {
        let mut sections = sections(&body);
        sections.remove(&tag);
        assert_eq!(refusal(&self::body(&sections)), FormatError::Short("sections"), "without section {tag}");
    }
}

#[test]
fn a_section_fills_its_length_exactly() {
    let whole = sections(&full().encode().expect("a small vault"));
    for tag in whole.keys() {
        let (mut longer, mut shorter) = (whole.clone(), whole.clone());
        longer.entry(*tag).and_modify(|bytes| bytes.push(0));
        shorter.entry(*tag).and_modify(|bytes| bytes.truncate(bytes.len() - 1));
        refusal(&body(&longer));
        refusal(&body(&shorter));
    }
    // The last section may be absent, so a body that ends before it is valid. A slot counts and hashes its body, so a body
    // does not end early by accident.
    let bytes = body(&whole);
    let without_denials = bytes.len() - section(DENIALS, &whole[&DENIALS]).len();
    for end in (0..bytes.len()).filter(|&end| end != without_denials) {
        refusal(&bytes[..end]);
    }
}

#[test]
fn values_that_cannot_be_are_refused() {
    type Mutation = fn(&mut Vault);
    let mutations: [(&str, Mutation); 8] = [
        ("a fourth key for one peer", |vault| vault.held[0].keys.push(HeldKey { key_number: 8, seed: seed(1) })),
        ("the same key number twice", |vault| vault.held[0].keys[1].key_number = 5),
        ("peers out of order", |vault| vault.held.reverse()),
        ("a peer with id 0", |vault| vault.held[0].peer = NodeId(0)),
        ("too many addresses", |vault| vault.roster.members[0].addresses = vec![address(); 9]),
        ("denied twice", |vault| vault.denials.push(vault.denials[0])),
        ("a denied node with id 0", |vault| vault.denials[0].node = NodeId(0)),
        ("too many members", |vault| vault.roster.members = vec![vault.roster.members[0].clone(); 300]),
    ];
    for (name, mutate) in mutations {
        let mut vault = full();
        mutate(&mut vault);
        assert!(vault.encode().is_err(), "{name}: what could not be opened again must not be written");
    }
}

#[test]
fn the_largest_roster_fits_its_slot_and_what_outgrows_it_is_refused() {
    let mut vault = full();
    let addresses = vec![format!("{}:1", "a".repeat(253)).parse().expect("a long address"); 8];
    let member = RosterMember { addresses: addresses.clone(), ..vault.roster.members[0].clone() };
    vault.roster.members = (1..=32).map(|id| RosterMember { node: NodeId(id), ..member.clone() }).collect();
    vault.roster.revoked = (1..=1024).map(|id| Revoked { node: NodeId(id), boot_pk: [1; 32] }).collect();
    vault.encode().expect("it fits beside everything else");

    let Some(Founding { role: Role::FirstFounder(first), .. }) = &mut vault.founding else {
        panic!("the full vault has a first founder")
    };
    let founder = FounderKeys { addresses, ..first.so_far[0].clone() };
    first.so_far = (1..=32).map(|id| FounderKeys { node: NodeId(id), ..founder.clone() }).collect();
    assert!(matches!(vault.encode(), Err(FormatError::TooMany { what: "bytes", .. })));
}

/// What may be advertised can be written into the vault, and nothing else may be. Mutated: with a rule of its own in the
/// configuration the daemon starts, and the command that founds or joins fails.
#[test]
fn what_may_be_advertised_can_be_written_into_the_vault() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("quorated.toml");
    for (address, fits) in [
        ("n1.example:7250", true),
        ("n1.exämple:7250", false),
        ("n1 .example:7250", false),
        ("n1.example:+80", false),
        ("n1.example", false),
    ] {
        let text = format!("data = '/d'\nlisten = '127.0.0.1:7250'\nname = 'n1'\nadvertise = '{address}'\n");
        std::fs::write(&file, text).expect("writes");
        let accepted = Config::load(config::Flags { config: Some(file.clone()), ..config::Flags::default() }).is_ok();
        assert_eq!((accepted, address.parse::<Address>().is_ok()), (fits, fits), "{address}");
    }
}
