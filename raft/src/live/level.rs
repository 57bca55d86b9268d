//! The feature level of a cluster: which changes its log may hold.
//!
//! While a cluster is updated, members of different versions run side by side, and a change that an older member cannot read
//! would stop that member. So the state has a level, each kind of change names the level that it needs ([`Change::level`]), and
//! the leader proposes nothing above the level of the state. The leader raises the level once every member knows more
//! ([`next_level`]). A level never falls: a program that knows less does not open the state any more.

use crate::live::command::Change;
use crate::live::state::State;

/// The highest level that this program knows.
pub const LEVEL: u16 = 1;
/// The level of a cluster that is founded.
pub(crate) const FIRST_LEVEL: u16 = 1;

impl Change {
    /// The level that a cluster needs before this may be proposed.
    pub fn level(&self) -> u16 {
        match self {
            Self::Found(_)
            | Self::OpenEpoch(_)
            | Self::EpochAck(_)
            | Self::ActivateEpoch { .. }
            | Self::OpenBatch { .. }
            | Self::CreateKey(_)
            | Self::RotateKey(_)
            | Self::Ready(_)
            | Self::ReportLock(_)
            | Self::Begin(_)
            | Self::RegisterShareKey(_)
            | Self::Reshare(_)
            | Self::Expel { .. }
            | Self::RetireEpoch { .. }
            | Self::Finish { .. }
            | Self::Sweep { .. }
            | Self::Invite(_)
            | Self::Replace { .. }
            | Self::Join(_)
            | Self::Joined { .. }
            | Self::RaiseLevel { .. }
            | Self::SetAddresses { .. }
            | Self::Ordered(_) => 1,
        }
    }
}

/// The level to raise the state to; `None` if it stays. `known` has the highest level of each member, where the leader knows it.
pub fn next_level(state: &State, known: impl IntoIterator<Item = Option<u16>>) -> Option<u16> {
    let lowest = known.into_iter().map(|level| level.unwrap_or(0)).min()?;
    (lowest > state.level()).then_some(lowest)
}
