//! How long each peer has been away, as this node counts it.

use std::collections::BTreeMap;

use quorate_shares::ids::NodeId;

use crate::vault::Vault;

/// A count is written again when it has grown by this.
const WRITE_MS: u64 = 600_000;

/// For how long this node has served without a session with each peer.
#[derive(Debug, Default)]
pub struct Absences {
    away_ms: BTreeMap<NodeId, u64>,
}

impl Absences {
    /// As the vault remembers it.
    pub fn remembered(vault: &Vault) -> Self {
        let away = vault.held.iter().map(|held| (held.peer, u64::from(held.away_s) * 1_000));
        Self { away_ms: away.collect() }
    }

    /// How long `peer` has been away, in milliseconds.
    pub fn of(&self, peer: NodeId) -> u64 {
        self.away_ms.get(&peer).copied().unwrap_or_default()
    }

    /// `peer` has been away for so much longer.
    pub fn count(&mut self, peer: NodeId, ms: u64) {
        let away = self.away_ms.entry(peer).or_default();
        *away = away.saturating_add(ms);
    }

    /// `peer` is there, or may come back: its absence is over.
    pub fn end(&mut self, peer: NodeId) {
        self.away_ms.remove(&peer);
    }

    /// What `vault` should remember instead of what it does, in seconds, rounded up: whose absence ended, passed the window,
    /// or grew much. A peer for which no lock key is held has nothing to be refused.
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

/// Writes what is owed into `vault`.
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
    const WINDOW_MS: u64 = 72 * HOUR_MS;

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
    fn a_restart_goes_on_where_the_vault_was() {
        let vault = vault(7_200);
        assert_eq!(Absences::remembered(&vault).of(PEER), 2 * HOUR_MS);
        assert_eq!(Absences::remembered(&vault).of(NodeId(3)), 0, "never seen away");
    }

    #[test]
    fn a_peer_without_lock_keys_here_is_nothing_to_write() {
        let vault = Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()));
        let mut absences = Absences::default();
        absences.count(PEER, 2 * WINDOW_MS);
        assert_eq!(absences.owed(&vault, WINDOW_MS), []);
    }
}
