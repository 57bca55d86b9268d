//! How a node that a member took in joins the cluster: `founding::run`, from the roster that it was shown to the entry that names it.

use std::collections::BTreeMap;

use quorate_node::messages::peer::{PeerRefusal, PeerReply, PeerRequest};
use quorate_node::vault::lock_keys;
use quorate_raft::command::{Change, Command};
use quorate_raft::state::{MemberState, State};
use quorate_shares::ids::NodeId;
use quorate_shares::kem::PublicKey;
use quorate_shares::lock::{Bundle, LockPeer};

use super::{Asked, Context, Daemon, Killed};

/// How long peers may take to make their keys, and pause between two rounds.
const ROUND_MS: u64 = 2_000;
/// Pause between two announcements.
const ANNOUNCE_MS: u64 = 1_000;

/// A process without a lock.
pub(super) struct Joining {
    bundle: Bundle,
    again_ms: u64,
    /// How many shares open a key, as a member says.
    threshold: Option<u8>,
    keys: BTreeMap<NodeId, LockPeer>,
}

impl Joining {
    pub(super) fn with(bundle: Bundle) -> Self {
        Self { bundle, again_ms: 0, threshold: None, keys: BTreeMap::new() }
    }
}

impl Daemon {
    /// `founding::make_lock`: asks who is there for a key, and one of them for the terms.
    pub(super) fn tick_joining(&mut self, context: &mut Context<'_>) -> Result<(), Killed> {
        self.greet(context);
        let there = self.peers_there(context.now_ms);
        let Some(joining) = &mut self.joining else { return Ok(()) };
        if context.now_ms < joining.again_ms {
            return Ok(());
        }
        joining.again_ms = context.now_ms + ROUND_MS;
        joining.keys.clear();
        if let Some(peer) = context.dice.pick(&there) {
            self.ask(context, peer, &PeerRequest::FoundingTerms, Asked::Terms);
        }
        for peer in there {
            let request = PeerRequest::LockPrepare(lock_keys::durable(self.vault(), peer));
            self.ask(context, peer, &request, Asked::FirstKey(peer));
        }
        Ok(())
    }

    fn peers_there(&self, now_ms: u64) -> Vec<NodeId> {
        self.peers().into_iter().filter(|&peer| self.session_with(peer, now_ms).is_some()).collect()
    }

    pub(super) fn terms(&self) -> PeerReply {
        let active = self.unlocked.as_ref().and_then(|unlocked| unlocked.state.active());
        let threshold = active.map(|active| active.threshold);
        threshold
            .map_or(PeerReply::Refused(PeerRefusal::NotFounding), |threshold| PeerReply::FoundingTerms { threshold })
    }

    pub(super) fn take_terms(&mut self, context: &mut Context<'_>, threshold: u8) -> Result<(), Killed> {
        if let Some(joining) = &mut self.joining {
            joining.threshold = Some(threshold);
        }
        self.make_first_lock(context)
    }

    pub(super) fn take_first_key(
        &mut self,
        context: &mut Context<'_>,
        peer: NodeId,
        key_number: u64,
        public: &[u8],
    ) -> Result<(), Killed> {
        let public_key = PublicKey::parse(public).expect("a member sends a key");
        if let Some(joining) = &mut self.joining {
            joining.keys.insert(peer, LockPeer { peer, key_number, public_key });
        }
        self.make_first_lock(context)
    }

    /// When every peer with a session has given a key: `renewal::lock` and `commit`, and then `founding::open_replica`.
    fn make_first_lock(&mut self, context: &mut Context<'_>) -> Result<(), Killed> {
        let there = self.peers_there(context.now_ms);
        let Some(joining) = &self.joining else { return Ok(()) };
        let Some(threshold) = joining.threshold else { return Ok(()) };
        let enough = joining.keys.len() >= usize::from(threshold.saturating_sub(1)).max(1);
        if !enough || there.iter().any(|peer| !joining.keys.contains_key(peer)) {
            return Ok(());
        }
        let Some(Joining { bundle, keys, .. }) = self.joining.take() else { return Ok(()) };
        let (place, pin) = lock_keys::inline_pin(context.dice.rng());
        let named: Vec<LockPeer> = keys.into_values().collect();
        let whose = (self.vault().identity.cluster, self.me.node);
        let lock =
            lock_keys::next_lock(None, whose, threshold.max(2), &named, (place, &pin), &bundle, context.dice.rng());
        let lock = lock.expect("as many peers as it needs");
        context.watch.lock_made(self.me.node, &lock, &bundle, &State::default());
        self.vault.update(|vault| vault.lock = Some(lock)).map_err(|_| Killed)?;
        self.open(context, bundle);
        for peer in self.peers() {
            let request = PeerRequest::LockCommit(lock_keys::durable(self.vault(), peer));
            self.ask(context, peer, &request, Asked::Nothing);
        }
        Ok(())
    }

    /// `inviter::announce`, until the own replica names this node as a member; then `founding::finish`. Until then it follows the
    /// log and does nothing else.
    pub(super) fn tick_announcing(&mut self, context: &mut Context<'_>) -> Result<(), Killed> {
        self.greet(context);
        self.tick_raft(context)?;
        self.after_event(context)?;
        let Some(unlocked) = &mut self.unlocked else { return Ok(()) };
        let member = unlocked.state.members.get(&self.me.node);
        if member.is_some_and(|member| member.state == MemberState::Active) {
            let image = context.db.now();
            let place = image.place(image.applied);
            unlocked.members_changed = true;
            let finished = self.vault.update(|vault| {
                vault.founding = None;
                vault.roster.log_id = place.into();
            });
            return finished.map_err(|_| Killed);
        }
        if context.now_ms >= self.announced_ms + ANNOUNCE_MS {
            self.announced_ms = context.now_ms;
            // Of those that are asked one leads; the others refuse.
            let change = Change::Joined { node: self.me.node };
            let request = PeerRequest::Propose(Box::new(Command::new(context.watch.wall_ms, change)));
            for peer in self.peers_there(context.now_ms) {
                self.ask(context, peer, &request, Asked::Nothing);
            }
        }
        Ok(())
    }
}
