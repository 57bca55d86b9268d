//! The batches in which a leader deals keys, one for each open epoch.

use quorate_raft::state::State;
use quorate_raft::{Leadership, Replica};
use quorate_shares::error::DealError;
use quorate_shares::ids::Epoch;
use quorate_shares::master::{KeyIdentity, MasterKey};
use quorate_shares::seal::{BATCH_RECORDS_MAX, Dealer, ShareRecord};

use crate::base::clock::boot_ms;

/// A batch is closed after this time.
const BATCH_MS: u64 = 10 * 60_000;

/// The batches in which keys are dealt, one for each open epoch.
pub struct OpenDealer {
    term: u64,
    opened_ms: u64,
    dealers: Vec<Dealer>,
}

impl OpenDealer {
    /// Batches that were opened in `term`, at `opened_ms` ([`boot_ms`]).
    pub fn new(term: u64, opened_ms: u64, dealers: Vec<Dealer>) -> Self {
        Self { term, opened_ms, dealers }
    }

    /// Whether the batches still belong to this leader, its term and the open epochs, and have room.
    pub fn is_usable(&self, replica: &Replica) -> bool {
        let leadership = *replica.leadership().borrow();
        self.is_usable_at(&leadership, &replica.read(State::record_epochs), boot_ms())
    }

    /// [`OpenDealer::is_usable`] with the leadership, the open epochs and the time as arguments.
    pub fn is_usable_at(&self, leadership: &Leadership, open: &[Epoch], now_ms: u64) -> bool {
        (leadership.am_leader && leadership.term == self.term)
            && self.dealers.iter().map(|dealer| dealer.header().epoch).eq(open.iter().copied())
            && now_ms.saturating_sub(self.opened_ms) < BATCH_MS
            && self.dealers.iter().all(|dealer| dealer.dealt() < BATCH_RECORDS_MAX)
    }

    /// Deals one key to each open epoch.
    ///
    /// # Errors
    /// [`DealError`]: a batch is full, or `kcv` is not the key-check value of the key.
    pub fn deal(
        &mut self,
        key: &MasterKey,
        identity: &KeyIdentity,
        kcv: &[u8; 32],
    ) -> Result<Vec<ShareRecord>, DealError> {
        self.dealers.iter_mut().map(|dealer| dealer.deal(key, identity, kcv)).collect()
    }

    /// Deals one key to one epoch; `None` if the epoch has no batch here.
    ///
    /// # Errors
    /// As [`OpenDealer::deal`].
    pub fn deal_to(
        &mut self,
        epoch: Epoch,
        key: &MasterKey,
        identity: &KeyIdentity,
        kcv: &[u8; 32],
    ) -> Result<Option<ShareRecord>, DealError> {
        let dealer = self.dealers.iter_mut().find(|dealer| dealer.header().epoch == epoch);
        dealer.map(|dealer| dealer.deal(key, identity, kcv)).transpose()
    }
}
