//! A thief copies disks, again and again, of fewer than t holders of each epoch, and tries everything that they hold.
//!
//! It reads both key_versions of every copy, plays LockOpen among all of them with every key that any of them ever held, and opens
//! with the real code what it can. It is given everything that is replicated, in plain. So what it does not get is
//! protected by the locks and the seals alone. The control is the same thief with the disks of t nodes.

use std::collections::{BTreeMap, BTreeSet};

use quorate_node::vault::Vault;
use quorate_raft::state::{EpochInfo, State};
use quorate_shares::context::Context;
use quorate_shares::envelope::{self, Ciphertext};
use quorate_shares::ids::{NodeId, ShareKeyGeneration};
use quorate_shares::lock::{Bundle, Lock, LockParams, PinPlace, open_piece};
use quorate_shares::secret::Secret;

use crate::model::actors::client::Kept;
use crate::model::invariants::Watch;
use crate::model::world::dice::Dice;
use crate::model::world::disk::VaultImage;

/// Copies that a thief keeps, and how many of the first it never gives up.
const COPIES_MAX: usize = 14;
const COPIES_KEPT: u64 = 4;

/// A copy of a disk, and the share keys that its locks protect.
struct Copy {
    node: NodeId,
    image: VaultImage,
    keys: BTreeSet<ShareKeyGeneration>,
}

/// The thief of one run. Of every epoch it has copies of fewer holders than open a key, taken at any moments: copies count that
/// hold the share key of a seat, locked as it is.
#[derive(Default)]
pub(in crate::model) struct Thief {
    copies: Vec<Copy>,
}

impl Thief {
    /// Whose disks it has copied.
    fn victims(&self) -> BTreeSet<NodeId> {
        self.copies.iter().map(|copy| copy.node).collect()
    }

    /// The node whose disk it copies next: mostly one that it has copied before.
    pub(in crate::model) fn next(&self, nodes: &[NodeId], dice: &mut Dice) -> Option<NodeId> {
        let known: Vec<NodeId> = nodes.iter().copied().filter(|node| self.victims().contains(node)).collect();
        let known = dice.pick(&known).filter(|_| !dice.chance(250));
        known.or_else(|| dice.pick(nodes))
    }

    /// Keeps a copy, unless that were too many. The first ones are kept as long as can be, the oldest a disk can be; of the others
    /// some make room.
    pub(in crate::model) fn copy(&mut self, node: NodeId, image: VaultImage, watch: &Watch, dice: &mut Dice) {
        if self.copies.len() == COPIES_MAX {
            let at = dice.between(COPIES_KEPT, COPIES_MAX as u64 - 1) as usize;
            self.copies.remove(at);
        }
        let keys = image.slots().flat_map(|vault| watch.protected(node, &vault)).collect();
        self.copies.push(Copy { node, image, keys });
        self.keep_few(&watch.state);
    }

    /// Drops the newest copies until there are fewer than t holders of every epoch among them: one may have been opened since,
    /// with a lower threshold, to share keys that were drawn before.
    fn keep_few(&mut self, state: &State) {
        let of = |copies: &[Copy], epoch: &EpochInfo| {
            let seats = epoch
                .committee
                .iter()
                .filter(|seat| copies.iter().any(|copy| copy.node == seat.node && copy.keys.contains(&seat.skgen)));
            seats.count()
        };
        while state.epochs.values().any(|epoch| of(&self.copies, epoch) >= usize::from(epoch.threshold)) {
            self.copies.pop();
        }
    }

    /// The copy that was made first.
    pub(in crate::model) fn oldest(&self) -> Option<(NodeId, VaultImage)> {
        self.copies.first().map(|copy| (copy.node, copy.image.clone()))
    }

    /// S1: disks of fewer than t holders of each epoch, copied at any moments, give no key. If they are of fewer nodes than any
    /// threshold ever was, they do not even open a bundle, and so give no share.
    pub(in crate::model) fn gets_nothing(&mut self, watch: &Watch) {
        self.keep_few(&watch.state);
        let copies: Vec<_> = self.copies.iter().map(|copy| (copy.node, copy.image.clone())).collect();
        let (bundles, victims) = (rob(&copies), self.victims());
        let least = watch.state.epochs.values().map(|epoch| epoch.threshold).min();
        let few = least.is_some_and(|least| victims.len() < usize::from(least));
        if let Some((node, _)) = bundles.first().filter(|_| few) {
            watch.broken(&format!("S1: the disks of {victims:?} open the bundle of node {node}"));
        }
        if let Some((key_version, epoch)) = watch.first_stolen(&bundles) {
            watch.broken(&format!(
                "S1: the disks of {victims:?} give key {key_version:?} by its shares of epoch {epoch}"
            ));
        }
    }

    /// S1, by its letter: no bytes of a disk, and none that are replicated, are a secret. The boot seeds lie there in plain by
    /// design: a search that does not find them proves nothing.
    pub(in crate::model) fn finds_no_secret(&self, watch: &Watch) {
        let key_versions =
            self.copies.iter().flat_map(|copy| copy.image.0.iter().map(|key_version| key_version.as_slice()));
        let rows = watch.image.rows.values().map(Vec::as_slice);
        if search(key_versions.clone().chain(rows), watch.secrets.iter().chain(&watch.plain)) {
            watch.broken("S1: a secret lies on a disk in the clear");
        }
        let vaults: Vec<Vault> = self.copies.iter().flat_map(|copy| copy.image.slots()).collect();
        let boot_seeds = vaults.iter().map(|vault| &vault.identity.boot_seed);
        if !vaults.is_empty() && !search(key_versions, boot_seeds) {
            watch.broken("the control: the search does not find what lies in plain");
        }
    }
}

/// The control: the disks of t nodes open every key, and with it what was encrypted under it.
pub(in crate::model) fn control(disks: &[(NodeId, VaultImage)], kept: &[Kept], watch: &Watch) {
    let bundles = rob(disks);
    if bundles.iter().map(|(node, _)| node).collect::<BTreeSet<_>>().len() < disks.len() {
        watch.broken(&format!("the control: {} disks open {} bundles", disks.len(), bundles.len()));
    }
    let Some(epoch) = watch.state.active().map(|epoch| epoch.epoch) else { return };
    for Kept { ciphertext, plaintext, key_version } in kept {
        let Some(key) = watch.stolen(*key_version, epoch, &bundles) else {
            return watch.broken("the control: t disks do not give the key");
        };
        let (identity, _) = watch.identity(*key_version);
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
