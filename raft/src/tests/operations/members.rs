//! What members do when they are asked: draw share keys, renew locks, deal, check their shares, put a key together.

use std::collections::BTreeMap;

use quorate_shares::ids::{Epoch, KeyVersion, KeyVersionId, NodeId};
use quorate_shares::kem::PublicKey;
use quorate_shares::master::{KeyIdentity, MasterKey};
use quorate_shares::quorum::Quorum;
use quorate_shares::seal::{BatchHeader, BatchOpener, Dealer, ShareRecord};
use quorate_shares::secret::Secret;

use super::cluster::Cluster;
use crate::live::command::{
    Change, CreateKey, Outcome, Ready, RecordBytes, RegisterShareKey, ReportLock, Reshare, Reshared, Verified,
};
use crate::live::refusal::Refusal;
use crate::live::rows::RowKey;
use crate::tests::fixture::{CLUSTER, uid};

impl Cluster {
    /// The lock renewal that adds a share key, then its registration.
    pub(super) fn draw_share_key(&mut self, node: NodeId) {
        let skgen = self.state.lock_terms(node).and_then(|terms| terms.next_share_key).expect("one is wanted");
        let seed = Secret::random(&mut self.rng);
        self.share_keys.get_mut(&node).expect("a member").insert(skgen, *seed.expose());
        self.report_lock(node);
        let share_pk = PublicKey::of_seed(&seed).as_bytes().to_vec();
        self.apply(Change::RegisterShareKey(RegisterShareKey { node, skgen, share_pk }));
    }

    /// Every member that is there makes its lock what it must be.
    pub(super) fn report_locks(&mut self) {
        for node in self.present.clone() {
            self.report_lock(node);
        }
    }

    /// A member makes its lock what it must be, with the pieces of the nodes that answer, and erases the share keys that its lock no
    /// longer protects.
    pub(super) fn report_lock(&mut self, node: NodeId) {
        let Some(terms) = self.state.lock_terms(node) else { return };
        let keys = self.share_keys.get_mut(&node).expect("a member");
        keys.retain(|skgen, _| terms.share_keys.contains(skgen) || terms.next_share_key == Some(*skgen));
        self.writes += 1;
        let report = ReportLock {
            node,
            generation: self.writes,
            threshold: terms.needed,
            holds_for: terms.peers.clone(),
            peers: terms.peers,
            share_keys: keys.keys().copied().collect(),
            writes: self.writes,
            former: self.state.former.len() as u64,
        };
        self.apply(Change::ReportLock(report));
    }

    pub(super) fn dealer(&mut self, epoch: Epoch) -> Dealer {
        let committee = self.state.committee(epoch).expect("an open epoch");
        let dealer = Dealer::open(CLUSTER, self.leader, &committee, &mut self.rng);
        self.apply(Change::OpenBatch { header: dealer.header().encode() });
        dealer
    }

    /// Deals these versions to `epoch` in a batch of their own, and returns the change to propose.
    pub(super) fn reshared(&mut self, epoch: Epoch, versions: &[KeyVersionId]) -> Change {
        let mut dealer = self.dealer(epoch);
        let dealt = versions.iter().map(|&(uid, version)| {
            let key = MasterKey::from_secret(Secret::take(&mut self.keys[&(uid, version)].clone()));
            let identity = KeyIdentity { cluster: CLUSTER, uid, version };
            let record = dealer.deal(&key, &identity, &key.kcv(&identity)).expect("room");
            Reshared { uid, version, record: RecordBytes(record.encode()) }
        });
        Change::Reshare(Reshare { epoch, dealt: dealt.collect() })
    }

    /// As many of these versions as the leader deals at a time, and only those that the holders that answer can reconstruct.
    pub(super) fn dealable(&self, versions: &[KeyVersionId]) -> Vec<KeyVersionId> {
        let present: Vec<_> = self.present.iter().map(|node| node.0).collect();
        let active = self.state.active().expect("one epoch always serves").epoch;
        let opens = |slot: &&KeyVersionId| self.rebuilt(**slot, active, Some(&present)).is_some();
        versions.iter().take(self.batch).filter(opens).copied().collect()
    }

    /// A new key with a record in each open epoch, verified by all of their holders.
    pub(super) fn create(&mut self, number: u8) {
        let name = format!("key/{number}");
        for epoch in self.make(number, &name).expect("a new key") {
            self.verify(number, epoch);
        }
        assert!(self.is_ready(number));
    }

    /// A new key with a record in each of these epochs, which are the open ones.
    pub(super) fn make(&mut self, number: u8, name: &str) -> Result<Vec<Epoch>, Refusal> {
        let (uid, version) = (uid(number), KeyVersion(1));
        let identity = KeyIdentity { cluster: CLUSTER, uid, version };
        let secret = *Secret::<32>::random(&mut self.rng).expose();
        let key = MasterKey::from_secret(Secret::take(&mut secret.clone()));
        let kcv = key.kcv(&identity);
        let epochs = self.state.record_epochs();
        let records = epochs.iter().map(|&epoch| {
            let record = self.dealer(epoch).deal(&key, &identity, &kcv).expect("room");
            RecordBytes(record.encode())
        });
        let records = records.collect();
        let (request, name) = ([number; 16], name.parse().expect("a name"));
        let create = CreateKey { request, uid, name, tags: BTreeMap::new(), kcv, records };
        self.propose(Change::CreateKey(create))?;
        self.keys.insert((uid, version), secret);
        Ok(epochs)
    }

    /// All holders of an epoch open and check their shares of a key.
    pub(super) fn verify(&mut self, number: u8, epoch: Epoch) -> Outcome {
        let holders = self.state.epochs[&epoch].committee.iter().map(|seat| seat.node).collect();
        let verified = vec![Verified { uid: uid(number), version: KeyVersion(1), holders }];
        self.apply(Change::Ready(Ready { epoch, verified }))
    }

    pub(super) fn is_ready(&self, number: u8) -> bool {
        self.state.version(uid(number), KeyVersion(1)).is_some_and(|version| version.ready)
    }

    /// The key from the records on the disk and the share keys of `holders`, all of them if none are named.
    pub(super) fn rebuilt(&self, slot: KeyVersionId, epoch: Epoch, holders: Option<&[u64]>) -> Option<[u8; 32]> {
        let (uid, version) = slot;
        let record = ShareRecord::parse(self.rows.get(&RowKey::Record(uid, version, epoch).to_bytes())?).ok()?;
        let header = BatchHeader::parse(self.rows.get(&RowKey::Header(record.batch).to_bytes())?).ok()?;
        let identity = KeyIdentity { cluster: CLUSTER, uid, version };
        let kcv = self.state.version(uid, version)?.kcv;
        let committee = self.state.committee(epoch)?;
        let mut quorum = Quorum::new(record.clone(), identity, &committee, kcv).ok()?;
        for holder in committee.holders() {
            let member = &holder.member;
            if quorum.progress().reached() || holders.is_some_and(|holders| !holders.contains(&member.node.0)) {
                continue;
            }
            let Some(seed) = self.share_keys.get(&member.node).and_then(|keys| keys.get(&member.generation)) else {
                continue;
            };
            let seed = Secret::take(&mut seed.clone());
            let opener = BatchOpener::open(&header, &committee, member.node, member.generation, &seed).ok()?;
            let share = opener.open_share(&record, &identity, &kcv).ok()?;
            quorum.add(member.node, holder.x, share).ok()?;
        }
        let key = quorum.close().ok()?;
        (key.matches(&identity, &kcv)).then(|| self.keys[&slot])
    }
}
