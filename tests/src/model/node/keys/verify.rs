//! Shares that are checked before a node relies on them: `verify::verify`, `check_shares` and `check_epoch`.

use std::collections::{BTreeMap, BTreeSet};

use quorate_node::cluster::verify::{self, Tally as Counted};
use quorate_node::messages::peer::{PeerRefusal, PeerReply, PeerRequest, VerifyRequest};
use quorate_raft::command::{Change, EpochAck, Ready};
use quorate_raft::plan::{self, Unverified};
use quorate_shares::ids::{Epoch, KeyVersionId, NodeId};

use crate::model::node::apply::Purpose;
use crate::model::node::{Asked, Context, Daemon, Replica};

/// New versions of one epoch that are being checked, and the holders that have checked them.
#[derive(Default)]
pub(in crate::model::node) struct Tally {
    records: Vec<Unverified>,
    by: Counted,
}

impl Daemon {
    /// `verify::verify`, its first half. If two epochs are open, they take turns.
    pub(in crate::model::node) fn verify_new(&mut self, context: &mut Context<'_>) {
        let index = context.db.now().applied;
        let mut by_epoch: BTreeMap<Epoch, Vec<Unverified>> = BTreeMap::new();
        for record in plan::unverified(&self.unlocked_mut().state) {
            by_epoch.entry(record.epoch).or_default().push(record);
        }
        self.unlocked_mut().tally = Tally::default();
        let epochs: Vec<Epoch> = by_epoch.keys().copied().collect();
        let Some(epoch) = context.dice.pick(&epochs) else { return };
        let records = by_epoch.remove(&epoch).expect("it was just there");
        let holders: BTreeSet<NodeId> = records.iter().flat_map(|record| record.holders.iter().copied()).collect();
        let versions = records.iter().map(|record| (record.uid, record.version)).collect();
        self.unlocked_mut().tally.records = records;
        let request = VerifyRequest { epoch, index, versions };
        for holder in holders {
            if holder != self.me.node {
                self.ask(context, holder, &PeerRequest::Verify(request.clone()), Asked::Verify(holder, epoch));
            } else if let PeerReply::Verified(versions) = self.answer_verify(context, &request) {
                self.count(holder, epoch, &versions);
            }
        }
    }

    /// A holder has opened and checked its shares of these versions.
    pub(in crate::model::node) fn count(&mut self, holder: NodeId, epoch: Epoch, versions: &[KeyVersionId]) {
        let tally = &mut self.unlocked_mut().tally;
        if tally.records.first().is_some_and(|record| record.epoch == epoch) {
            for version in versions {
                tally.by.entry(*version).or_default().insert(holder);
            }
        }
    }

    /// `verify::verify`, its second half: what enough holders have checked is declared ready.
    pub(in crate::model::node) fn declare_ready(&mut self, context: &mut Context<'_>) {
        let tally = &mut self.unlocked_mut().tally;
        let verified = verify::reached(&tally.records, &tally.by);
        if let Some(epoch) = tally.records.first().map(|record| record.epoch).filter(|_| !verified.is_empty()) {
            *tally = Tally::default();
            self.propose(context, Change::Ready(Ready { epoch, verified }), Purpose::Nothing);
        }
    }

    /// `verify::collect_acks`.
    pub(in crate::model::node) fn collect_acks(
        &mut self,
        context: &mut Context<'_>,
        epoch: Epoch,
        missing: Vec<NodeId>,
    ) {
        let index = context.db.now().applied;
        for holder in missing {
            if holder != self.me.node {
                let request = PeerRequest::AckEpoch { epoch, index };
                self.ask(context, holder, &request, Asked::AckEpoch(holder, epoch));
            } else if let PeerReply::EpochAck { reshared } = self.answer_ack(context, epoch, index) {
                self.note_ack(context, holder, epoch, reshared);
            }
        }
    }

    pub(in crate::model::node) fn note_ack(
        &mut self,
        context: &mut Context<'_>,
        node: NodeId,
        epoch: Epoch,
        reshared: u64,
    ) {
        self.propose(context, Change::EpochAck(EpochAck { epoch, node, reshared }), Purpose::Nothing);
    }

    /// `verify::check_epoch`.
    pub(in crate::model::node) fn answer_ack(
        &mut self,
        context: &mut Context<'_>,
        epoch: Epoch,
        index: u64,
    ) -> PeerReply {
        if context.db.now().applied < index {
            return PeerReply::Refused(PeerRefusal::Behind);
        }
        let unlocked = self.unlocked_mut();
        let Some((reshared, key_versions)) = unlocked.checked.owed(&unlocked.state, epoch) else {
            return PeerReply::Refused(PeerRefusal::WrongEpoch);
        };
        let verified = self.check(context, epoch, &key_versions);
        let all = verified.len() == key_versions.len();
        self.unlocked_mut().checked.note(verified);
        if !all {
            return PeerReply::Refused(PeerRefusal::WrongEpoch);
        }
        context.watch.epoch_acked(self.me.node, epoch);
        PeerReply::EpochAck { reshared }
    }

    /// `verify::check_shares`, for a node that has applied so far.
    pub(in crate::model::node) fn answer_verify(
        &mut self,
        context: &mut Context<'_>,
        request: &VerifyRequest,
    ) -> PeerReply {
        if context.db.now().applied < request.index {
            return PeerReply::Refused(PeerRefusal::Behind);
        }
        PeerReply::Verified(self.check(context, request.epoch, &request.versions))
    }

    fn check(&mut self, context: &mut Context<'_>, epoch: Epoch, key_versions: &[KeyVersionId]) -> Vec<KeyVersionId> {
        let me = self.me.node;
        let unlocked = self.unlocked_mut();
        let replica = Replica(&unlocked.state, context.db.now());
        let mut verified = Vec::new();
        for &(uid, version) in key_versions {
            let Ok(info) = unlocked.holder.share_record_info(&replica, epoch, uid, version) else { continue };
            let Ok((x, share)) = unlocked.holder.open(&replica, &info) else { continue };
            context.watch.opened(me, &info, x, &share);
            context.watch.verified(me, (uid, version), epoch);
            verified.push((uid, version));
        }
        verified
    }
}
