//! A cluster as founding leaves it: every node with its keys in its own lock, and its vault on its disk.
//!
//! Founding itself is tested on real daemons (`promises/membership/founding.rs`). Here its outcome is made by the same
//! functions, and the first image of every vault is the file that the real program writes.

use std::collections::BTreeMap;

use quorate_node::vault::disk::DataDir;
use quorate_node::vault::lock_keys;
use quorate_node::vault::{Roster, RosterMember, Standing, Vault, VaultFile};
use quorate_raft::Membership;
use quorate_raft::command::{Found, NewMember};
use quorate_shares::ids::{ClusterId, NodeId, NodeName, ShareKeyGeneration};
use quorate_shares::kem::PublicKey;
use quorate_shares::lock::{Bundle, LockPeer, ShareKey, StorageKey};
use quorate_shares::secret::Secret;
use quorate_shares::signature;

use crate::model::node::LEASE;
use crate::model::world::dice::Dice;
use crate::model::world::disk::{Entry, Payload, VaultDisk, VaultImage};

/// What a run begins with.
pub(in crate::model) struct Founded {
    pub(in crate::model) found: Found,
    pub(in crate::model) bundles: BTreeMap<NodeId, Bundle>,
    pub(in crate::model) disks: BTreeMap<NodeId, VaultDisk>,
}

/// `nodes` founders, of whom `threshold` open a key.
pub(in crate::model) fn found(nodes: u64, threshold: u8, dice: &mut Dice) -> Founded {
    let cluster = ClusterId(dice.bytes());
    let ids: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
    let bundles: BTreeMap<NodeId, Bundle> = ids.iter().map(|&node| (node, bundle(dice))).collect();
    let members: Vec<RosterMember> = ids.iter().map(|&node| member(node)).collect();
    let roster = Roster { members, ..Roster::default() };
    let mut vaults: BTreeMap<NodeId, Vault> = BTreeMap::new();
    for &node in &ids {
        let mut vault = Vault::new(cluster, Secret::random(dice.rng()));
        vault.identity.node = Some(node);
        vault.roster = roster.clone();
        vaults.insert(node, vault);
    }
    for &node in &ids {
        let mut peers = Vec::new();
        for &peer in ids.iter().filter(|&&peer| peer != node) {
            let durable = lock_keys::durable(&vaults[&node], peer);
            let held = vaults.get_mut(&peer).expect("every node has a vault");
            let (key_number, public_key) = lock_keys::prepare(held, node, durable, dice.rng()).expect("the first key");
            peers.push(LockPeer { peer, key_number, public_key });
        }
        let lock = {
            let (place, pin) = lock_keys::inline_pin(dice.rng());
            lock_keys::next_lock(None, (cluster, node), threshold, &peers, (place, &pin), &bundles[&node], dice.rng())
        };
        vaults.get_mut(&node).expect("every node has a vault").lock = Some(lock.expect("t - 1 of the peers"));
    }
    let new = |node: &NodeId| NewMember {
        node: *node,
        name: name(*node),
        addresses: vec![format!("10.0.0.{node}:7250")],
        boot_pk: boot_pk(*node),
        op_pk: op_pk(*node),
        share_pk: PublicKey::of_seed(&bundles[node].share_keys[0].seed).as_bytes().to_vec(),
        skgen: ShareKeyGeneration(1),
    };
    let found = Found {
        cluster,
        operator: signature::PublicKey::of_seed(&Secret::random(dice.rng())),
        operator_label: "Ada".to_owned(),
        threshold,
        allow_solo: false,
        accept_no_redundancy: nodes == 2,
        lease_ms: LEASE.as_millis() as u64,
        members: ids.iter().map(new).collect(),
    };
    let disks = vaults.into_iter().map(|(node, vault)| (node, disk_of(vault))).collect();
    Founded { found, bundles, disks }
}

pub(in crate::model) fn bundle(dice: &mut Dice) -> Bundle {
    Bundle {
        op_seed: Secret::random(dice.rng()),
        storage_keys: vec![StorageKey { number: 1, key: Secret::random(dice.rng()) }],
        share_keys: vec![ShareKey { generation: ShareKeyGeneration(1), seed: Secret::random(dice.rng()) }],
    }
}

fn member(node: NodeId) -> RosterMember {
    RosterMember {
        node,
        boot_pk: boot_pk(node),
        op_pk: op_pk(node),
        standing: Standing { member: true, voter: true, ..Standing::default() },
        name: name(node),
        addresses: vec![address(node)],
    }
}

pub(in crate::model) fn name(node: NodeId) -> NodeName {
    format!("n{node}").parse().expect("a node name")
}

pub(in crate::model) fn address(node: NodeId) -> quorate_node::vault::layout::Address {
    format!("10.0.0.{node}:7250").parse().expect("an address")
}

/// Stands for a node's boot identity.
pub(in crate::model) fn boot_pk(node: NodeId) -> [u8; 32] {
    [node.0 as u8; 32]
}

/// Stands for its op identity.
pub(in crate::model) fn op_pk(node: NodeId) -> [u8; 32] {
    [node.0 as u8 + 100; 32]
}

/// The first entry of every founder's log: all of them vote.
pub(in crate::model) fn first_entry(nodes: &[NodeId]) -> Entry {
    let configs = vec![nodes.iter().copied().collect()];
    let membership = Membership { configs, ..Membership::default() };
    Entry { term: 0, payload: Payload::Members(None, membership) }
}

/// A disk with the file that the real program writes for this vault.
pub(in crate::model) fn disk_of(vault: Vault) -> VaultDisk {
    VaultDisk::holding(written(vault))
}

fn written(vault: Vault) -> VaultImage {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data = DataDir::open(dir.path()).expect("a data directory");
    VaultFile::create(&data, vault).expect("a new vault");
    VaultImage::of(&std::fs::read(dir.path().join("vault")).expect("the vault that was just written"))
}
