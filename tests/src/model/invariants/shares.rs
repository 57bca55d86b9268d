//! Shares: what is opened, given, accepted and reconstructed.

use std::collections::BTreeMap;

use quorate_node::memory::holder::ShareRecordInfo;
use quorate_shares::ids::{Epoch, KeyVersionId, NodeId};
use quorate_shares::lock::Bundle;
use quorate_shares::master::{KeyIdentity, MasterKey};
use quorate_shares::quorum::Quorum;
use quorate_shares::seal::{BatchHeader, BatchOpener, ShareRecord, share_commitment};
use quorate_shares::secret::Secret;
use sha2::{Digest, Sha256};

use super::{PLAIN_MAX, Watch};
use crate::model::node::Replica;
use crate::model::world::disk::Image;
use crate::model::world::message::Process;

impl Watch {
    /// S5, S6: an opened share matches its commitment in the committed state, and never changes.
    pub(in crate::model) fn opened(&mut self, node: NodeId, info: &ShareRecordInfo, x: u8, share: &Secret<32>) {
        let x_of = self.state.x_of(info.record.epoch, node);
        self.holds(x_of == Some(x), || format!("node {node} opened the share of number {x}, which is not its own"));
        self.accepted(node, &info.identity, &info.record, x, share);
    }

    /// S5, S6: an accepted share matches its commitment in the committed state, and never changes.
    pub(in crate::model) fn accepted(
        &mut self,
        from: NodeId,
        identity: &KeyIdentity,
        record: &ShareRecord,
        x: u8,
        share: &Secret<32>,
    ) {
        let key_version = (identity.uid, identity.version);
        let known = self.dealt.get(&(key_version, record.epoch));
        self.holds(known == Some(&record.encode()), || {
            "a share is held against another record than was committed".into()
        });
        let commitment = share_commitment(identity, record.batch, record.epoch, record.threshold, x, share);
        let right = record.share(x).is_some_and(|sealed| sealed.commitment == commitment);
        self.holds(right, || format!("S6: a share of node {from} was accepted that its commitment denies"));
        let digest: [u8; 32] = Sha256::digest(share.expose()).into();
        let first = *self.shares.entry((key_version, record.epoch, x)).or_insert_with(|| {
            self.plain.extend((self.plain.len() < PLAIN_MAX).then(|| share.duplicate()));
            digest
        });
        self.holds(first == digest, || format!("S5: an accepted share of node {from} changed"));
        self.seen.shares += 1;
    }

    /// S3: a node outside the committee of an epoch is given no share of it; and no node gives shares without a lease, or to a
    /// node that its own log denies.
    pub(in crate::model) fn given(&self, by: Process, to: NodeId, epoch: Epoch, image: &Image) {
        let leased = self.wall_ms < self.leased_until(by);
        self.holds(leased, || format!("node {} gives a share without a lease", by.node));
        let seated = self.state.x_of(epoch, to).is_some();
        self.holds(seated, || format!("S3: node {to}, which has no seat in epoch {epoch}, is given a share"));
        self.accepted_from(by.node, to, image);
    }

    pub(in crate::model) fn verified(&mut self, node: NodeId, key_version: KeyVersionId, epoch: Epoch) {
        self.verified.entry((key_version, epoch)).or_default().insert(node);
    }

    /// S7: what a quorum rebuilds is the key that was dealt, by its public key-check value.
    pub(in crate::model) fn rebuilt(&self, identity: &KeyIdentity, key: &MasterKey) {
        let kcv = self.state.version(identity.uid, identity.version).map(|version| version.kcv);
        self.holds(kcv == Some(key.kcv(identity)), || "S7: a quorum rebuilt another key than was dealt".to_owned());
    }

    /// S7: every t of the holders give the same key, and it matches the key-check value; fewer give none.
    pub(in crate::model) fn every_quorum_agrees(&self, key_version: KeyVersionId, epoch: Epoch) {
        let (identity, kcv) = self.identity(key_version);
        let record = self.record(key_version, epoch).expect("every version has its record");
        let committee = self.state.committee(epoch).expect("the epoch is known");
        let shares = self.all_shares(key_version, epoch);
        let (needed, holders) = (u32::from(record.threshold.needed()), u32::from(record.threshold.holders()));
        self.holds(shares.len() == holders as usize, || "a holder cannot open its share".to_owned());
        for chosen in 1u32..1 << holders {
            let mut quorum = Quorum::new(record.clone(), identity, &committee, kcv).expect("they belong together");
            for (number, (node, (x, share))) in shares.iter().enumerate() {
                if chosen >> number & 1 == 1 {
                    quorum.add(*node, *x, share.duplicate()).expect("an honest share counts");
                }
            }
            let closed = quorum.close();
            match chosen.count_ones() >= needed {
                true => match closed {
                    Ok(key) => self.rebuilt(&identity, &key),
                    Err(_) => self.broken("S7: a quorum of honest shares does not close"),
                },
                false => self.holds(closed.is_err(), || "S1: fewer than t shares give a key".to_owned()),
            }
        }
    }

    /// D5: a record opens only as the very version of the very key and epoch that it was made for.
    pub(in crate::model) fn record_is_itself(&self, key_version: KeyVersionId, other: KeyVersionId, epoch: Epoch) {
        let (identity, kcv) = self.identity(other);
        let Some(record) = self.record(key_version, epoch).filter(|_| key_version != other) else { return };
        let committee = self.state.committee(epoch).expect("the epoch is known");
        let swapped = Quorum::new(record.clone(), identity, &committee, kcv);
        self.holds(swapped.is_err(), || "D5: a record is taken for that of another key".to_owned());
        for (&node, holder) in &self.holders {
            let replica = Replica(&self.state, &self.image);
            let Ok(mut info) = holder.share_record_info(&replica, epoch, other.0, other.1) else { continue };
            let right = info.record.clone();
            info.record = record.clone();
            self.holds(holder.open(&replica, &info).is_err(), || {
                format!("D5: node {node} opens a record of another key")
            });
            // The place inside the record, moved: the same key, and the share of another.
            info.record = ShareRecord { shares: record.shares.clone(), ..right };
            self.holds(holder.open(&replica, &info).is_err(), || format!("D5: node {node} opens a moved share"));
        }
    }

    pub(in crate::model) fn identity(&self, key_version: KeyVersionId) -> (KeyIdentity, [u8; 32]) {
        let version = self.state.version(key_version.0, key_version.1).expect("the version is known");
        (KeyIdentity { cluster: self.cluster, uid: key_version.0, version: key_version.1 }, version.kcv)
    }

    pub(in crate::model) fn record(&self, key_version: KeyVersionId, epoch: Epoch) -> Option<ShareRecord> {
        use quorate_node::memory::holder::Source;
        let bytes = Replica(&self.state, &self.image).record(key_version.0, key_version.1, epoch).ok()??;
        ShareRecord::parse(&bytes).ok()
    }

    /// Every holder's share, opened as only it can.
    fn all_shares(&self, key_version: KeyVersionId, epoch: Epoch) -> BTreeMap<NodeId, (u8, Secret<32>)> {
        let replica = Replica(&self.state, &self.image);
        let open = |(&node, holder): (&NodeId, &quorate_node::memory::holder::Holder)| {
            let info = holder.share_record_info(&replica, epoch, key_version.0, key_version.1).ok()?;
            Some((node, holder.open(&replica, &info).ok()?))
        };
        self.holders.iter().filter_map(open).collect()
    }

    /// The first key version that a thief with these bundles puts together, of any epoch that there ever was.
    pub(in crate::model) fn first_stolen(&self, bundles: &[(NodeId, Bundle)]) -> Option<(KeyVersionId, Epoch)> {
        // Without a bundle there is nothing to try.
        let dealt = self.dealt.keys().filter(|_| !bundles.is_empty());
        let mut dealt = dealt.copied();
        dealt.find(|(key_version, epoch)| self.stolen(*key_version, *epoch, bundles).is_some())
    }

    /// What a thief with these bundles puts together, by the real code.
    pub(in crate::model) fn stolen(
        &self,
        key_version: KeyVersionId,
        epoch: Epoch,
        bundles: &[(NodeId, Bundle)],
    ) -> Option<MasterKey> {
        let (identity, kcv) = self.identity(key_version);
        let record = ShareRecord::parse(self.dealt.get(&(key_version, epoch))?).ok()?;
        let header = BatchHeader::parse(self.headers.get(&record.batch)?).ok()?;
        let committee = self.committees.get(&epoch)?;
        let mut quorum = Quorum::new(record.clone(), identity, committee, kcv).ok()?;
        for (node, bundle) in bundles {
            for key in &bundle.share_keys {
                let opener = BatchOpener::open(&header, committee, *node, key.generation, &key.seed);
                let opened = opener.ok().and_then(|opener| {
                    let share = opener.open_share(&record, &identity, &kcv).ok()?;
                    Some((opener.x(), share))
                });
                // Another bundle of the node may have given it before.
                let _ = opened.map(|(x, share)| quorum.add(*node, x, share));
            }
        }
        quorum.close().ok()
    }
}
