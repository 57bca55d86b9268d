//! Everything that a set of stolen disks gives away.
//!
//! The thief runs the real opening code over copies of data directories, offline and as far as it gets: it reads the
//! vaults, plays the LockOpen exchange among the disks it has (trying every key that one holds for another, current or
//! not), opens bundles, reads databases, opens shares and reconstructs keys. It must be as strong as the disks allow:
//! otherwise a test in which it finds nothing proves nothing. The control of every such test is the same thief with one more
//! disk.
//!
//! It does not guess, and it uses nothing that lies off the disks, such as a pin on a token, unless a test gives it that
//! ([`rob_with`]). But it tries what a lock must not open with: see `locks`.

mod bundle;
pub mod canary;
mod field;
mod locks;
pub mod memory;
mod records;
pub mod steal;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use quorate_node::vault::invitation::InvitationKey;
use quorate_node::vault::{self, Role, Vault};
use quorate_raft::offline::OfflineStore;
use quorate_shares::context::Context;
use quorate_shares::envelope::{self, Ciphertext};
use quorate_shares::ids::{Epoch, KeyName, NodeId};
use quorate_shares::lock::{Bundle, Lock, PinPlace};
use quorate_shares::master::{KeyIdentity, MasterKey, RootPurpose};
use quorate_shares::secret::Secret;

use crate::thief::canary::Canary;

/// A disk whose vault could be read.
struct Disk {
    path: PathBuf,
    label: String,
    node: NodeId,
    vault: Vault,
    /// The secrets that lie in plain in its vault, and what they are.
    in_plain: Vec<(String, Vec<u8>)>,
}

impl Disk {
    fn is_of_the_node_of(&self, other: &Self) -> bool {
        (self.node, self.vault.identity.cluster) == (other.node, other.vault.identity.cluster)
    }
}

/// A disk whose bundle could be opened.
struct OpenDisk<'a> {
    disk: &'a Disk,
    bundle: Bundle,
}

/// What the thief got.
#[derive(Default)]
pub struct Loot {
    /// Each step, in words.
    pub story: Vec<String>,
    /// Number of nodes whose bundle opened.
    pub bundles: usize,
    /// Names of keys that could be read.
    pub key_names: BTreeSet<KeyName>,
    /// Number of shares that opened.
    pub shares: usize,
    /// Epochs of which a share opened.
    pub epochs: BTreeSet<Epoch>,
    /// Keys that could be reconstructed.
    pub keys: Vec<RecoveredKey>,
    /// Every secret that was seen, to look for on other disks.
    pub canaries: Vec<Canary>,
    /// What lies in plain on the disks by design: boot seeds, pins, the keys that are held for the locks of others, invitations. A
    /// search that does not find them proves nothing.
    pub in_plain: Vec<Canary>,
}

/// A key in the hands of a thief, verified by its key-check value.
pub struct RecoveredKey {
    pub name: KeyName,
    /// Which cluster, key and version.
    pub identity: KeyIdentity,
    key: MasterKey,
}

impl RecoveredKey {
    /// Opens a ciphertext that was made with this key; `None` if it was not.
    pub fn open(&self, ciphertext: &Ciphertext, context: &Context) -> Option<Vec<u8>> {
        let header = ciphertext.header();
        if (&header.name, header.version) != (&self.name, self.identity.version) {
            return None;
        }
        let plaintext = envelope::open(&self.key.encryption_root(&self.identity), ciphertext, context).ok()?;
        Some(plaintext.to_vec())
    }

    /// The root that a node which serves this key keeps in memory.
    pub fn root(&self) -> Secret<32> {
        self.key.root(&self.identity, RootPurpose::Encrypt)
    }
}

impl Loot {
    /// Whether the disks gave away nothing at all: no bundle, no name, no share, no key.
    pub fn is_nothing(&self) -> bool {
        self.bundles == 0 && self.key_names.is_empty() && self.shares == 0 && self.keys.is_empty()
    }
}

impl fmt::Display for Loot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.story.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        let Self { bundles, key_names, shares, keys, .. } = self;
        let (names, keys) = (key_names.len(), keys.len());
        write!(f, "bundles opened: {bundles}, key names read: {names}, shares opened: {shares}, keys recovered: {keys}")
    }
}

/// Opens what can be opened of these data directories.
pub fn rob(directories: &[PathBuf]) -> Loot {
    rob_with(directories, &[])
}

/// As [`rob`], for a thief who also has pins, of any node.
pub fn rob_with(directories: &[PathBuf], pins: &[Vec<u8>]) -> Loot {
    let mut loot = Loot::default();
    let disks: Vec<Disk> = directories.iter().filter_map(|path| read(path, &mut loot)).collect();
    let mut open: Vec<OpenDisk<'_>> =
        disks.iter().filter_map(|disk| locks::pick(disk, &disks, pins, &mut loot)).collect();
    // What one copy of a disk opens to may open the database of a later or earlier copy, whose own lock stays shut.
    let again = disks.iter().filter_map(|disk| {
        let mut known = open.iter().filter(|known| known.disk.is_of_the_node_of(disk));
        let is_open = known.clone().any(|known| known.disk.path == disk.path);
        let OpenDisk { disk: copy, bundle } = known.next_back().filter(|_| !is_open)?;
        loot.story.push(format!("{}: tried with the keys of {}", disk.label, copy.path.display()));
        Some(OpenDisk { disk, bundle: bundle.duplicate() })
    });
    let again: Vec<_> = again.collect();
    open.extend(again);
    records::read(&open, &mut loot);
    loot
}

/// Opens the bundle of the disk at `directory` with the help of `all`, for a test that plays its node.
pub fn unlock(directory: &Path, all: &[PathBuf]) -> Option<(Vault, Bundle)> {
    let mut loot = Loot::default();
    let disks: Vec<Disk> = all.iter().filter_map(|path| read(path, &mut loot)).collect();
    let disk = disks.iter().find(|disk| disk.path == directory)?;
    let bundle = locks::pick(disk, &disks, &[], &mut loot)?.bundle;
    Some((vault::inspect(directory).ok()?, bundle))
}

/// Opens the database of the disk at `directory` with the help of `all`, for a test that looks at the replicated state.
pub fn database(directory: &Path, all: &[PathBuf]) -> Option<OfflineStore> {
    let (_, bundle) = unlock(directory, all)?;
    records::database(directory, &bundle).ok()
}

fn read(path: &Path, loot: &mut Loot) -> Option<Disk> {
    let label = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    let vault = match vault::inspect(path) {
        Ok(vault) => vault,
        Err(error) => {
            loot.story.push(format!("{label}: no vault can be read: {error}"));
            return None;
        }
    };
    let Some(node) = vault.identity.node else {
        loot.story.push(format!("{label}: the vault of a node that is in no cluster"));
        return None;
    };
    let mut members: Vec<_> = vault.roster.members.iter().map(|member| member.name.as_str()).collect();
    members.sort_unstable();
    let (name, members) = (vault.roster.member(node).map_or("", |member| member.name.as_str()), members.join(", "));
    loot.story.push(format!("{label}: the disk of {name}, of a cluster of {members}; these names are not encrypted"));
    let in_plain = in_plain(&label, &vault);
    loot.in_plain.extend(in_plain.iter().filter_map(|(what, secret)| Canary::bytes(what.clone(), secret)));
    Some(Disk { path: path.to_owned(), label, node, vault, in_plain })
}

/// The secrets that lie in plain in a vault, and what they are.
fn in_plain(label: &str, vault: &Vault) -> Vec<(String, Vec<u8>)> {
    let mut secrets = vec![(format!("boot seed of {label}"), vault.identity.boot_seed.expose().to_vec())];
    if let Some(PinPlace::Inline(pin)) = vault.lock.as_ref().map(Lock::pin) {
        secrets.push((format!("pin of {label}"), pin.clone()));
    }
    for held in &vault.held {
        let what = |number| format!("key {number} that {label} holds for the lock of node {}", held.peer);
        secrets.extend(held.keys.iter().map(|key| (what(key.key_number), key.seed.expose().to_vec())));
    }
    let mut invitation = |key: &InvitationKey| {
        secrets.push((format!("an invitation in the vault of {label}"), key.expose().to_vec()));
    };
    match vault.founding.as_ref().map(|founding| &founding.role) {
        Some(Role::FirstFounder(first)) => first.invitations.iter().for_each(|open| invitation(&open.key)),
        Some(Role::Founder(invited) | Role::Joiner(invited)) => invitation(&invited.key),
        None => {}
    }
    secrets
}
