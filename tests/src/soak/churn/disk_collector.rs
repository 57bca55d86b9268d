//! A thief who copies disks at random moments and keeps the copies, always of fewer holders of an epoch than a key needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use quorate_raft::state::State;
use quorate_shares::ids::Epoch;

use super::Churn;

/// Disks that are kept at most; one more replaces the oldest.
const KEPT_MAX: usize = 8;
/// How often nothing is stolen, of so many times.
const OF: usize = 3;

/// A disk as it was at one moment between two at which all was well.
struct Image {
    node: String,
    path: PathBuf,
    /// The epochs of which it may hold a share.
    epochs: BTreeSet<Epoch>,
    /// Its machine has joined again since, with another identity.
    foreign: bool,
}

pub(super) struct DiskCollector {
    directory: PathBuf,
    count: usize,
    kept: Vec<Image>,
    /// Stolen since all was well the last time.
    fresh: Vec<Image>,
    /// For each epoch: the holders of which a disk was ever kept, and how many would have been enough.
    holders: BTreeMap<Epoch, (BTreeSet<String>, u8)>,
    /// How it was when all was well the last time.
    before: (Epoch, u8),
}

impl DiskCollector {
    pub(super) fn new(directory: PathBuf) -> Self {
        fs::create_dir(&directory).expect("a directory");
        let (kept, fresh, holders) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { directory, count: 0, kept, fresh, holders, before: (Epoch(1), 2) }
    }

    pub(super) fn taken(&self) -> usize {
        self.count
    }

    fn place(&mut self) -> PathBuf {
        self.count += 1;
        self.directory.join(self.count.to_string())
    }

    /// Keeps what was stolen since all was well in the epoch before, as long as that makes fewer holders of each epoch than
    /// are needed. Epochs may have come and gone meanwhile, of fewer members and with a lower threshold than before and after:
    /// a node is revoked and another one joins. Returns all that is kept.
    pub(super) fn settle(&mut self, state: &State, threshold: u8) -> Vec<PathBuf> {
        let (first, epoch) = (self.before.0, state.active().expect("an active epoch").epoch);
        let meanwhile = state.epochs.range(first..=epoch).map(|(_, epoch)| epoch.threshold);
        let least = meanwhile.chain([self.before.1, threshold]).min().expect("these two");
        self.before = (epoch, threshold);
        for mut image in std::mem::take(&mut self.fresh) {
            image.epochs = (first.0..=epoch.0).map(Epoch).collect();
            let spared = image.epochs.iter().all(|epoch| {
                let (of, enough) = self.holders.entry(*epoch).or_insert_with(|| (BTreeSet::new(), least));
                *enough = (*enough).min(least);
                let count = of.len() + usize::from(!of.contains(&image.node));
                count < usize::from(*enough)
            });
            if spared {
                for epoch in &image.epochs {
                    self.holders.get_mut(epoch).expect("it was just there").0.insert(image.node.clone());
                }
                self.kept.push(image);
            } else {
                fs::remove_dir_all(&image.path).expect("our own directory");
            }
        }
        while self.kept.len() > KEPT_MAX {
            fs::remove_dir_all(self.kept.remove(0).path).expect("our own directory");
        }
        self.kept.iter().map(|image| image.path.clone()).collect()
    }

    /// The machine joins again: its next disk belongs to another identity.
    pub(super) fn forget(&mut self, node: &str) {
        for image in self.kept.iter_mut().filter(|image| image.node == node) {
            image.foreign = true;
        }
    }

    /// An image of one of `nodes`, of an epoch before `epoch`.
    pub(super) fn older_than(&self, epoch: Epoch, nodes: &BTreeSet<String>) -> Option<(String, PathBuf)> {
        let old = |image: &&Image| {
            !image.foreign && nodes.contains(&image.node) && image.epochs.last().is_some_and(|last| *last < epoch)
        };
        self.kept.iter().rev().find(old).map(|image| (image.node.clone(), image.path.clone()))
    }
}

impl Churn {
    /// Steals the disk of some member, now and then.
    pub(super) fn steal_sometimes(&mut self) {
        if self.dice.below(OF) == 0 {
            return;
        }
        let (node, path) = (self.pick(&self.members.clone()), self.collector.place());
        self.cluster.testnet.steal_one(&node, &path).expect("steals");
        let (epochs, foreign) = (BTreeSet::new(), false);
        self.collector.fresh.push(Image { node, path, epochs, foreign });
    }
}
