//! A thief copies disks, again and again, of fewer than t nodes, and tries everything that they hold.
//!
//! It reads both slots of every copy, plays LockOpen among all of them with every key that any of them ever held, and opens
//! with the real code what it can. It is given all that is replicated in plain: that layer hides nothing from it, so what it
//! does not get is what the locks and the seals alone keep from it. The control is the same thief with the disks of t nodes.

use std::collections::{BTreeMap, BTreeSet};

use quorate_node::vault::Vault;
use quorate_shares::context::Context;
use quorate_shares::envelope::{self, Ciphertext};
use quorate_shares::ids::NodeId;
use quorate_shares::lock::{Bundle, Lock, LockParams, PinPlace, open_piece};
use quorate_shares::secret::Secret;

use super::client::Kept;
use super::dice::Dice;
use super::disk::VaultImage;
use super::invariants::Watch;

/// Copies that a thief keeps, and how many of the first it never gives up.
const COPIES_MAX: usize = 14;
const COPIES_KEPT: u64 = 4;

/// The thief of one run.
pub(super) struct Thief {
    /// Whose disks it can reach: one fewer than open a key.
    victims: BTreeSet<NodeId>,
    copies: Vec<(NodeId, VaultImage)>,
}

impl Thief {
    pub(super) fn new(nodes: &[NodeId], threshold: u8, dice: &mut Dice) -> Self {
        let mut victims = BTreeSet::new();
        while victims.len() + 1 < usize::from(threshold) {
            victims.extend(dice.pick(nodes));
        }
        Self { victims, copies: Vec::new() }
    }

    pub(super) fn reaches(&self, node: NodeId) -> bool {
        self.victims.contains(&node)
    }

    /// Keeps a copy. The first ones are kept for ever, the oldest a disk can be; of the others some make room.
    pub(super) fn copy(&mut self, node: NodeId, image: VaultImage, dice: &mut Dice) {
        if self.copies.len() == COPIES_MAX {
            let at = dice.between(COPIES_KEPT, COPIES_MAX as u64 - 1) as usize;
            self.copies.remove(at);
        }
        self.copies.push((node, image));
    }

    /// The copy that was made first.
    pub(super) fn oldest(&self) -> Option<(NodeId, VaultImage)> {
        self.copies.first().cloned()
    }

    /// S1: disks of fewer than t nodes, copied at any moments, open nothing: no bundle, and so no share and no key.
    pub(super) fn gets_nothing(&self, watch: &Watch) {
        let bundles = rob(&self.copies);
        if let Some((node, _)) = bundles.first() {
            watch.broken(&format!("S1: the disks of {:?} open the bundle of node {node}", self.victims));
        }
    }

    /// S1, by its letter: no bytes of a disk, and none that are replicated, are a secret. The boot seeds lie there in plain by
    /// design: a search that does not find them proves nothing.
    pub(super) fn finds_no_secret(&self, watch: &Watch) {
        let slots = self.copies.iter().flat_map(|(_, image)| image.0.iter().map(|slot| slot.as_slice()));
        let rows = watch.image.rows.values().map(Vec::as_slice);
        if search(slots.clone().chain(rows), watch.secrets.iter().chain(&watch.plain)) {
            watch.broken("S1: a secret lies on a disk in the clear");
        }
        let vaults: Vec<Vault> = self.copies.iter().flat_map(|(_, image)| image.slots()).collect();
        let boot_seeds = vaults.iter().map(|vault| &vault.identity.boot_seed);
        if !vaults.is_empty() && !search(slots, boot_seeds) {
            watch.broken("the control: the search does not find what lies in plain");
        }
    }
}

/// The control: the disks of t nodes open every key, and with it what was encrypted under it.
pub(super) fn control(disks: &[(NodeId, VaultImage)], kept: &[Kept], watch: &Watch) {
    let bundles = rob(disks);
    if bundles.iter().map(|(node, _)| node).collect::<BTreeSet<_>>().len() < disks.len() {
        watch.broken(&format!("the control: {} disks open {} bundles", disks.len(), bundles.len()));
    }
    let Some(epoch) = watch.state.active().map(|epoch| epoch.epoch) else { return };
    for Kept { ciphertext, plaintext, slot } in kept {
        let Some(key) = watch.stolen(*slot, epoch, &bundles) else {
            return watch.broken("the control: t disks do not give the key");
        };
        let (identity, _) = watch.identity(*slot);
        let ciphertext = Ciphertext::parse_text(ciphertext).expect("a node made it");
        let opened = envelope::open(&key.encryption_root(&identity), &ciphertext, &Context::empty());
        if opened.ok().as_deref() != Some(plaintext) {
            return watch.broken("the control: the stolen key opens something else");
        }
    }
}

/// Whether any of these bytes hold the beginning of any of these secrets.
fn search<'a>(bytes: impl Iterator<Item = &'a [u8]>, secrets: impl Iterator<Item = &'a Secret<32>>) -> bool {
    let starts: BTreeSet<[u8; 8]> = secrets.map(|secret| *secret.expose().first_chunk().expect("8 of 32")).collect();
    let mut bytes = bytes.map(|bytes| {
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        &bytes[..end]
    });
    bytes.any(|bytes| bytes.windows(8).any(|window| starts.contains(window)))
}

/// Every bundle that these copies open, with its node.
fn rob(copies: &[(NodeId, VaultImage)]) -> Vec<(NodeId, Bundle)> {
    let vaults: Vec<(NodeId, Vault)> =
        copies.iter().flat_map(|(node, image)| image.slots().map(|vault| (*node, vault))).collect();
    let mut locks: BTreeMap<(NodeId, u64), &Lock> = BTreeMap::new();
    for (node, vault) in &vaults {
        locks.extend(vault.lock.iter().map(|lock| ((*node, lock.generation()), lock)));
    }
    let mut bundles = Vec::new();
    for ((node, generation), lock) in locks {
        let params = LockParams { cluster: vaults[0].1.identity.cluster, node, generation };
        let pieces = pieces(&params, lock, &vaults);
        let PinPlace::Inline(pin) = lock.pin() else { continue };
        // Too few are tried as well: the real code must refuse them.
        let pieces: Vec<_> = pieces.into_iter().take(lock.needed().into()).collect();
        if let Ok(bundle) = lock.open(&params, &pieces, pin) {
            bundles.push((node, bundle));
        }
    }
    bundles
}

/// Every piece of `lock` that some key in some copy opens.
fn pieces(params: &LockParams, lock: &Lock, vaults: &[(NodeId, Vault)]) -> BTreeMap<u8, Secret<32>> {
    let mut opened = BTreeMap::new();
    for piece in lock.pieces() {
        let request = lock.request(params, piece.peer, [0; 32]).expect("the lock names this peer");
        let mut tried = BTreeSet::new();
        let keys = vaults.iter().filter(|(holder, _)| *holder == piece.peer);
        let keys = keys.filter_map(|(_, vault)| vault.held_for(params.node)).flat_map(|held| &held.keys);
        for key in keys {
            if tried.insert(*key.seed.expose())
                && let Ok(share) = open_piece(&key.seed, &request)
            {
                opened.insert(piece.x, share);
                break;
            }
        }
    }
    opened
}
