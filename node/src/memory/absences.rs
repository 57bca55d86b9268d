//! How long each peer has been away, as this node counts.

use std::collections::BTreeMap;

use quorate_shares::ids::NodeId;

use crate::vault::Vault;

/// A count is written again after it has grown by this.
const WRITE_MS: u64 = 600_000;

/// How long this node has served without a session with each peer.
#[derive(Debug, Default)]
pub struct Absences {
    away_ms: BTreeMap<NodeId, u64>,
}

impl Absences {
    /// The counts in the vault.
    pub fn remembered(vault: &Vault) -> Self {
        let away = vault.held.iter().map(|held| (held.peer, u64::from(held.away_s) * 1_000));
        Self { away_ms: away.collect() }
    }

    /// How long `peer` has been away, in milliseconds.
    pub fn of(&self, peer: NodeId) -> u64 {
        self.away_ms.get(&peer).copied().unwrap_or_default()
    }

    /// Adds `ms` to the absence of `peer`.
    pub fn count(&mut self, peer: NodeId, ms: u64) {
        let away = self.away_ms.entry(peer).or_default();
        *away = away.saturating_add(ms);
    }

    /// Ends the absence of `peer`: it is there, or an operator admitted it.
    pub fn end(&mut self, peer: NodeId) {
        self.away_ms.remove(&peer);
    }

    /// The counts to write into `vault`, in seconds, rounded up: of the peers whose absence has ended, has passed the window, or
    /// has grown by `WRITE_MS`. A peer without lock keys here is left out: there is nothing to refuse to it.
    pub fn owed(&self, vault: &Vault, window_ms: u64) -> Vec<(NodeId, u32)> {
        let owed = vault.held.iter().filter_map(|held| {
            let (now_ms, known_ms) = (self.of(held.peer), u64::from(held.away_s) * 1_000);
            let passed = now_ms >= window_ms && known_ms < window_ms;
            let worth = (now_ms == 0 && known_ms > 0) || passed || now_ms >= known_ms + WRITE_MS;
            worth.then(|| (held.peer, u32::try_from(now_ms.div_ceil(1_000)).unwrap_or(u32::MAX)))
        });
        owed.collect()
    }
}

/// Writes the counts of [`Absences::owed`] into `vault`.
pub fn remember(vault: &mut Vault, owed: &[(NodeId, u32)]) {
    for held in &mut vault.held {
        if let Some((_, away_s)) = owed.iter().find(|(peer, _)| *peer == held.peer) {
            held.away_s = *away_s;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random;
    use quorate_shares::ids::ClusterId;
    use quorate_shares::secret::Secret;

    const PEER: NodeId = NodeId(2);
    const HOUR_MS: u64 = 3_600_000;
    const WINDOW_MS: u64 = 2 * HOUR_MS;

    fn vault(away_s: u32) -> Vault {
        let mut vault = Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()));
        vault.held_for_mut(PEER).away_s = away_s;
        vault
    }

    #[test]
    fn a_count_is_written_when_it_matters_and_otherwise_seldom() {
        let mut vault = vault(0);
        let mut absences = Absences::remembered(&vault);
        assert_eq!(absences.owed(&vault, WINDOW_MS), []);
        absences.count(PEER, WRITE_MS - 1);
        assert_eq!(absences.owed(&vault, WINDOW_MS), [], "not at every look");
        absences.count(PEER, 1);
        let owed = absences.owed(&vault, WINDOW_MS);
        assert_eq!(owed, [(PEER, 600)]);
        remember(&mut vault, &owed);
        assert_eq!(absences.owed(&vault, WINDOW_MS), [], "once");
        absences.count(PEER, 1_000);
        assert_eq!(absences.owed(&vault, 601_000), [(PEER, 601)], "it passed the window");
        absences.end(PEER);
        assert_eq!(absences.owed(&vault, WINDOW_MS), [(PEER, 0)], "it is over");
    }

    #[test]
    fn a_restart_goes_on_with_the_counts_of_the_vault() {
        let vault = vault(7_200);
        assert_eq!(Absences::remembered(&vault).of(PEER), 2 * HOUR_MS);
        assert_eq!(Absences::remembered(&vault).of(NodeId(3)), 0, "never seen away");
    }

    #[test]
    fn the_absence_of_a_peer_without_lock_keys_is_not_written() {
        let vault = Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()));
        let mut absences = Absences::default();
        absences.count(PEER, 2 * WINDOW_MS);
        assert_eq!(absences.owed(&vault, WINDOW_MS), []);
    }
}
