//! Resharing existing versions to the PENDING epoch: `leader::reshare` and `deal::reshare`.

use quorate_node::keys::reconstruct::Loaded;
use quorate_raft::command::{Change, RecordBytes, Reshare, Reshared};
use quorate_shares::ids::{Epoch, KeyVersionId};

use crate::model::node::apply::Purpose;
use crate::model::node::keys::reconstruct::Want;
use crate::model::node::{Context, Daemon};

/// Versions that are reshared in one command at most: fewer than the program's, so that a leader dies between two.
const AT_ONCE: u64 = 12;

/// Versions on their way from the ACTIVE epoch to the PENDING one.
pub(in crate::model::node) struct Resharing {
    epoch: Epoch,
    /// None as long as they are being loaded.
    masters: Vec<Loaded>,
}

impl Daemon {
    /// Begins with some of `versions`, unless others are under way.
    pub(in crate::model::node) fn reshare(
        &mut self,
        context: &mut Context<'_>,
        epoch: Epoch,
        mut versions: Vec<KeyVersionId>,
    ) {
        if self.unlocked_mut().resharing.is_some() {
            return;
        }
        versions.truncate(context.dice.between(1, AT_ONCE) as usize);
        self.unlocked_mut().resharing = Some(Resharing { epoch, masters: Vec::new() });
        if !self.load(context, Want::Reshare, &versions) {
            self.unlocked_mut().resharing = None;
        }
    }

    /// The keys that were loaded for this; `None` if they could not be loaded.
    pub(in crate::model::node) fn take_reconstructed(&mut self, masters: Option<Vec<Loaded>>) {
        let resharing = &mut self.unlocked_mut().resharing;
        match (resharing.as_mut(), masters) {
            (Some(resharing), Some(masters)) => resharing.masters = masters,
            _ => *resharing = None,
        }
    }

    /// Deals what is loaded, once there are batches for it.
    pub(in crate::model::node) fn advance_reshare(&mut self, context: &mut Context<'_>) {
        let Some(unlocked) = &self.unlocked else { return };
        if unlocked.resharing.as_ref().is_none_or(|resharing| resharing.masters.is_empty()) {
            return;
        }
        if !self.may_deal(context) {
            self.unlocked_mut().resharing = None;
        } else if self.open_dealer(context).is_none() {
            self.open_batches(context);
        } else if let Some(Resharing { epoch, masters }) = self.unlocked_mut().resharing.take() {
            let open = self.open_dealer(context).expect("it was just there");
            let dealt = masters.iter().map(|Loaded { identity, kcv, key, .. }| {
                let record = open.deal_to(epoch, key, identity, kcv).expect("a usable batch has room")?;
                let record = RecordBytes(record.encode());
                Some(Reshared { uid: identity.uid, version: identity.version, record })
            });
            // None of them: the epoch is not open any more.
            if let Some(dealt) = dealt.collect() {
                self.propose(context, Change::Reshare(Reshare { epoch, dealt }), Purpose::Nothing);
            }
        }
    }
}
