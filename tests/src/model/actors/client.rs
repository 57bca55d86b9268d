//! Clients: they ask any node, repeat requests without an answer, and remember every answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_client::wire::Answered;
use quorate_node::messages::peer::Order;
use quorate_shares::envelope::Ciphertext;
use quorate_shares::ids::{KeyName, KeyVersionId, NodeId};

use crate::model::invariants::Watch;
use crate::model::world::dice::Dice;
use crate::model::world::disk::Image;
use crate::model::world::message::{Answer, Request, Said};

/// A request without an answer is forgotten after this.
const FORGET_MS: u64 = 30_000;
/// At the end, a request that is not answered within this time is asked again.
const ANSWER_MS: u64 = 6_000;
/// Keys and ciphertexts of one run at most; then the ones there are get used.
const KEYS_MAX: usize = 40;
const CIPHERTEXTS_MAX: usize = 400;

struct Sent {
    at_ms: u64,
    first_ms: u64,
    request: Arc<Request>,
}

/// An acknowledged ciphertext and what it must open to.
#[derive(Clone)]
pub(in crate::model) struct Kept {
    pub(in crate::model) ciphertext: String,
    pub(in crate::model) plaintext: Vec<u8>,
    pub(in crate::model) key_version: KeyVersionId,
}

/// All clients of a cluster, and their common memory.
#[derive(Default)]
pub(in crate::model) struct Clients {
    sent: BTreeMap<u64, Sent>,
    next: u64,
    names: u64,
    pub(in crate::model) keys: Vec<KeyName>,
    pub(in crate::model) kept: Vec<Kept>,
    made: BTreeMap<[u8; 16], KeyVersionId>,
}

impl Clients {
    /// Something to ask of some node.
    pub(in crate::model) fn ask(
        &mut self,
        now_ms: u64,
        nodes: &[NodeId],
        dice: &mut Dice,
    ) -> Option<(NodeId, u64, Arc<Request>)> {
        self.sent.retain(|_, sent| now_ms < sent.first_ms + FORGET_MS);
        let node = dice.pick(nodes)?;
        // Some requests are repeated under their own name, at another node: what was made is made once.
        let open: Vec<u64> = self.sent.keys().copied().collect();
        let again = dice.pick(&open).filter(|_| dice.chance(200));
        let (first_ms, request) = match again.and_then(|id| self.sent.get(&id)) {
            Some(sent) => (sent.first_ms, Arc::clone(&sent.request)),
            None => (now_ms, Arc::new(self.think_of(dice)?)),
        };
        self.next += 1;
        self.sent.insert(self.next, Sent { at_ms: now_ms, first_ms, request: Arc::clone(&request) });
        Some((node, self.next, request))
    }

    fn think_of(&mut self, dice: &mut Dice) -> Option<Request> {
        let choice = dice.below(100);
        if self.keys.is_empty() || (choice < 8 && self.keys.len() < KEYS_MAX) {
            self.names += 1;
            // Now and then two clients want one name.
            let name = format!("key-{}", self.names - u64::from(self.names > 1 && dice.chance(150)));
            return Some(Request::Create { request: dice.bytes(), name: name.parse().expect("a key name") });
        }
        let at = dice.below(self.keys.len() as u64) as usize;
        let name = self.keys[at].clone();
        Some(match choice {
            0..16 => Request::Rotate { request: dice.bytes(), name },
            16..24 => Request::Show { name },
            24..60 if self.kept.len() < CIPHERTEXTS_MAX => {
                Request::Encrypt { name, plaintext: dice.bytes::<9>().to_vec() }
            }
            _ if self.kept.is_empty() => return None,
            _ => {
                let at = dice.below(self.kept.len() as u64) as usize;
                Request::Decrypt { ciphertext: self.kept[at].ciphertext.clone() }
            }
        })
    }

    /// An operator's order, as one more request.
    pub(in crate::model) fn order(&mut self, now_ms: u64, order: Order) -> (u64, Arc<Request>) {
        self.next += 1;
        let request = Arc::new(Request::Order(order));
        self.sent.insert(self.next, Sent { at_ms: now_ms, first_ms: now_ms, request: Arc::clone(&request) });
        (self.next, request)
    }

    /// An answer arrives.
    pub(in crate::model) fn hear(
        &mut self,
        id: u64,
        answer: &Answer,
        watch: &mut Watch,
        disks: &BTreeMap<NodeId, &Image>,
    ) {
        let Some(Sent { at_ms, request, .. }) = self.sent.get(&id) else { return };
        let (at_ms, request, now_ms) = (*at_ms, Arc::clone(request), watch.wall_ms);
        if answer.said == Said::TryAgain {
            self.sent.remove(&id);
            return;
        }
        if !Answered::holds(answer.good_for_ms, now_ms - at_ms) {
            watch.seen.discarded += 1;
            self.sent.remove(&id);
            return;
        }
        watch.lease_still_holds(answer.fact);
        watch.answer_is_fresh(answer.fact);
        self.sent.remove(&id);
        match (&*request, &answer.said) {
            (Request::Create { request, name } | Request::Rotate { request, name }, Said::Made { uid, version }) => {
                let key_version = (*uid, *version);
                let first = *self.made.entry(*request).or_insert(key_version);
                if first != key_version {
                    watch.broken("one request made two versions");
                }
                if self.made.iter().any(|(other, made)| *made == key_version && other != request) {
                    watch.broken("two requests are told of one version");
                }
                watch.acknowledged(key_version, name, disks);
                if !self.keys.contains(name) {
                    self.keys.push(name.clone());
                }
            }
            (Request::Encrypt { name, plaintext }, Said::Ciphertext(text)) => {
                let version = Ciphertext::parse_text(text).expect("a node makes ciphertexts").header().version;
                watch.encrypted_under_the_newest(name, version);
                let Some(key_version) = watch.slot_of(name, version) else {
                    return watch.broken("D6: a ciphertext names a version that was never committed");
                };
                watch.can_be_rebuilt(key_version, disks);
                self.kept.push(Kept { ciphertext: text.clone(), plaintext: plaintext.clone(), key_version });
                watch.seen.encrypted += 1;
            }
            (Request::Decrypt { ciphertext }, said) => self.decrypted(ciphertext, said, watch),
            (Request::Show { name }, Said::Newest(Some(version))) => watch.encrypted_under_the_newest(name, *version),
            (Request::Show { name } | Request::Encrypt { name, .. } | Request::Rotate { name, .. }, Said::NotFound) => {
                watch.may_be_missing(name, at_ms);
            }
            (Request::Create { request, name }, Said::Conflict) => watch.conflicts(name, request),
            (Request::Order(order), Said::Begun(operation)) => {
                let (Order::Remove { request, .. } | Order::Revoke { request, .. }) = order;
                watch.begun(*request, *operation);
            }
            (Request::Order(_), Said::NotFound | Said::Conflict) => {}
            (Request::Rotate { .. }, Said::Conflict) => {}
            (Request::Show { .. }, Said::Newest(None)) => {}
            (request, said) => watch.broken(&format!("{request:?} is answered {said:?}")),
        }
    }

    /// D7: what was encrypted is decrypted, at any node, whatever happened in between.
    fn decrypted(&self, ciphertext: &str, said: &Said, watch: &mut Watch) {
        let kept = self.kept.iter().find(|kept| kept.ciphertext == ciphertext).expect("only these are asked for");
        match said {
            Said::Plaintext(plaintext) if *plaintext == kept.plaintext => watch.seen.decrypted += 1,
            other => watch.broken(&format!("D7: an acknowledged ciphertext is answered {other:?}")),
        }
    }

    /// Asks `node` to decrypt one of the ciphertexts: for the end, when all must open everywhere.
    pub(in crate::model) fn decrypt(&mut self, now_ms: u64, kept: &Kept) -> (u64, Arc<Request>) {
        self.next += 1;
        let request = Arc::new(Request::Decrypt { ciphertext: kept.ciphertext.clone() });
        self.sent.insert(self.next, Sent { at_ms: now_ms, first_ms: now_ms, request: Arc::clone(&request) });
        (self.next, request)
    }

    /// Whether a request still waits for its answer, and a client still waits for it.
    pub(in crate::model) fn waits_for(&self, id: u64, now_ms: u64) -> bool {
        self.sent.get(&id).is_some_and(|sent| now_ms < sent.at_ms + ANSWER_MS)
    }
}
