//! What clients ask: `client::answer` with its two looks at the lease, one before the work and one when the answer is ready.

use std::sync::Arc;

use quorate_client::error::Code;
use quorate_client::wire::{Answered, WireError};
use quorate_node::base::phase::{RequestClass, answers};
use quorate_node::memory::lease::good_for_ms;
use quorate_node::messages::caller::{Caller, Door};
use quorate_node::messages::peer::{Forwarded, ForwardedRequest, KeyChange, Order, PeerRequest};
use quorate_raft::state::State;
use quorate_shares::context::Context as Bound;
use quorate_shares::envelope::{self, Ciphertext, CiphertextHeader, CiphertextKind, Suite};
use quorate_shares::ids::{Epoch, KeyName, KeyUid, KeyVersion, KeyVersionId};
use quorate_shares::master::EncryptionRoot;

use super::{Asked, Context, Daemon, Out};
use crate::model::node::keys::deal::ReplyTo;
use crate::model::node::keys::reconstruct::Want;
use crate::model::world::message::{Answer, Fact, Request, Said};

/// A request gets no more time than this.
const DEADLINE_MS: u64 = 25_000;

/// A client's request that is being worked on.
pub(super) struct Job {
    client: u64,
    request: Request,
    stage: Stage,
    since_ms: u64,
    /// The state was caught up once for this request: what is missing now is missing.
    fresh: bool,
}

#[derive(Clone)]
enum Stage {
    Work,
    CatchUp { since_ms: u64 },
    Load(KeyVersionId),
    Root(KeyVersionId, Arc<EncryptionRoot>),
    Change,
    Made(KeyUid, KeyVersion),
    Done(Said),
}

impl Job {
    pub(super) fn caught_up(&mut self, sent_ms: u64) {
        if let Stage::CatchUp { since_ms } = self.stage
            && sent_ms >= since_ms
        {
            self.fresh = true;
            self.stage = Stage::Work;
        }
    }
}

impl Daemon {
    /// A request comes in. The first look at the lease.
    pub(super) fn take_request(&mut self, context: &mut Context<'_>, client: u64, request: &Request) {
        let now_ms = context.now_ms;
        let leased = self.unlocked.as_ref().is_some_and(|unlocked| unlocked.lease.is_valid_at(now_ms));
        if !answers(self.phase, RequestClass::Work) || !leased {
            return self.say(context, client, Answered::ALWAYS, Said::TryAgain);
        }
        self.next += 1;
        let id = self.next;
        let job = Job { client, request: request.clone(), stage: Stage::Work, since_ms: now_ms, fresh: false };
        self.unlocked_mut().jobs.insert(id, job);
        self.work(context, id);
    }

    /// The answer is ready. The second look at the lease, and how long the answer may be believed.
    pub(in crate::model) fn finish(&mut self, context: &mut Context<'_>, id: u64) {
        self.settle_phase(context.now_ms);
        let Some(unlocked) = &mut self.unlocked else { return };
        let Some(Job { client, since_ms, stage: Stage::Done(said), .. }) = unlocked.jobs.remove(&id) else { return };
        let until_ms = unlocked.lease.until_ms_at(context.now_ms).filter(|_| answers(self.phase, RequestClass::Work));
        match until_ms {
            Some(until_ms) => self.say(context, client, good_for_ms(until_ms, since_ms), said),
            None => self.say(context, client, Answered::ALWAYS, Said::TryAgain),
        }
    }

    fn say(&self, context: &mut Context<'_>, client: u64, good_for_ms: u32, said: Said) {
        let lease_until_ms = context.watch.leased_until(self.me);
        let fact = Fact { node: self.me.node, applied: context.db.now().applied, lease_until_ms };
        context.out.push(Out::Answer(client, Box::new(Answer { said, good_for_ms, fact })));
    }

    pub(super) fn advance_jobs(&mut self, context: &mut Context<'_>) {
        let Some(unlocked) = &self.unlocked else { return };
        let ready = |job: &Job| matches!(job.stage, Stage::Work | Stage::Root(..) | Stage::Made(..));
        let ids: Vec<u64> = unlocked.jobs.iter().filter(|(_, job)| ready(job)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.work(context, id));
    }

    /// Keeps loads going, and gives up jobs whose deadline has passed.
    pub(super) fn look_after_work(&mut self, context: &mut Context<'_>) {
        self.look_after_loads(context);
        let now_ms = context.now_ms;
        let late = |job: &Job| !matches!(job.stage, Stage::Done(_)) && now_ms >= job.since_ms + DEADLINE_MS;
        let jobs = &self.unlocked_mut().jobs;
        let late: Vec<u64> = jobs.iter().filter(|(_, job)| late(job)).map(|(id, _)| *id).collect();
        late.into_iter().for_each(|id| self.done(context, id, Said::TryAgain));
    }

    fn done(&mut self, context: &mut Context<'_>, id: u64, said: Said) {
        if let Some(job) = self.unlocked_mut().jobs.get_mut(&id) {
            job.stage = Stage::Done(said);
            context.out.push(Out::Finish(id));
        }
    }

    fn work(&mut self, context: &mut Context<'_>, id: u64) {
        let Some(job) = self.unlocked_mut().jobs.get(&id) else { return };
        let (request, stage) = (job.request.clone(), job.stage.clone());
        if let Stage::Made(uid, version) = stage {
            return self.read_back(context, id, uid, version);
        }
        match request {
            Request::Encrypt { name, plaintext } => {
                let newest = |state: &State| newest_ready(state, &name);
                // A key that is still being checked by its holders is not missing.
                let missing = |state: &State| state.key_by_name(&name).map_or(Said::NotFound, |_| Said::TryAgain);
                let Some((uid, version)) = self.find(context, id, newest, missing) else { return };
                let Some(root) = self.root(context, id, (uid, version)) else { return };
                let header =
                    CiphertextHeader { kind: CiphertextKind::Message, suite: Suite::ChaCha20Poly1305, name, version };
                let sealed = envelope::seal(&root, header, &Bound::empty(), &plaintext, context.dice.rng());
                self.done(context, id, Said::Ciphertext(sealed.expect("a short message").to_text()));
            }
            Request::Decrypt { ciphertext } => {
                let ciphertext = Ciphertext::parse_text(&ciphertext).expect("it was made by a node");
                let CiphertextHeader { name, version, .. } = ciphertext.header().clone();
                let known = |state: &State| {
                    let key = state.key_by_name(&name)?;
                    key.versions.contains_key(&version).then_some((key.uid, version))
                };
                let Some(key_version) = self.find(context, id, known, |_| Said::NotFound) else { return };
                let Some(root) = self.root(context, id, key_version) else { return };
                let opened = envelope::open(&root, &ciphertext, &Bound::empty());
                let said = opened.map_or(Said::BadCiphertext, |plaintext| Said::Plaintext(plaintext.to_vec()));
                self.done(context, id, said);
            }
            Request::Show { name } => {
                let known = |state: &State| state.key_by_name(&name).map(|key| key.uid);
                let Some(uid) = self.find(context, id, known, |_| Said::NotFound) else { return };
                let newest = self.unlocked_mut().state.keys[&uid].newest_ready().map(|version| version.version);
                self.done(context, id, Said::Newest(newest));
            }
            Request::Create { request, name } => {
                self.change(context, id, KeyChange::Create { request, name, tags: Default::default() });
            }
            Request::Rotate { request, name } => {
                self.change(context, id, KeyChange::Rotate { request, name, expect: None });
            }
            Request::Order(order) => self.order(context, id, order),
        }
    }

    /// `Call::find`: what is not here is looked for once more after catching up with the leader.
    fn find<T>(
        &mut self,
        context: &mut Context<'_>,
        id: u64,
        look: impl Fn(&State) -> Option<T>,
        missing: impl Fn(&State) -> Said,
    ) -> Option<T> {
        let unlocked = self.unlocked_mut();
        if let Some(found) = look(&unlocked.state) {
            return Some(found);
        }
        let job = unlocked.jobs.get_mut(&id)?;
        if job.fresh {
            let said = missing(&unlocked.state);
            self.done(context, id, said);
        } else {
            job.stage = Stage::CatchUp { since_ms: context.now_ms };
            self.ask_for_lease(context);
        }
        None
    }

    /// `crypto::root`: from memory, or from a quorum.
    fn root(&mut self, context: &mut Context<'_>, id: u64, key_version: KeyVersionId) -> Option<Arc<EncryptionRoot>> {
        let now_ms = context.now_ms;
        let unlocked = self.unlocked_mut();
        if let Some(Stage::Root(loaded, root)) = unlocked.jobs.get(&id).map(|job| &job.stage)
            && *loaded == key_version
        {
            return Some(Arc::clone(root));
        }
        if let Some(root) = unlocked.roots.warm(key_version, now_ms) {
            return Some(root);
        }
        let leased = unlocked.lease.is_valid_at(now_ms);
        if let Some(job) = unlocked.jobs.get_mut(&id) {
            job.stage = Stage::Load(key_version);
        }
        if !leased || !self.load(context, Want::Root(key_version), &[key_version]) {
            self.done(context, id, Said::TryAgain);
        }
        None
    }

    /// A load has ended: the jobs that waited for it use what it brought, whether or not it was kept.
    pub(super) fn loaded(&mut self, key_version: KeyVersionId, root: &Arc<EncryptionRoot>) {
        let waiting = self.unlocked_mut().jobs.values_mut();
        let waiting = waiting.filter(|job| matches!(job.stage, Stage::Load(waits) if waits == key_version));
        waiting.for_each(|job| job.stage = Stage::Root(key_version, Arc::clone(root)));
    }

    pub(super) fn load_failed(&mut self, context: &mut Context<'_>, key_version: KeyVersionId) {
        let jobs = &self.unlocked_mut().jobs;
        let waits = |job: &Job| matches!(job.stage, Stage::Load(waits) if waits == key_version);
        let waiting: Vec<u64> = jobs.iter().filter(|(_, job)| waits(job)).map(|(id, _)| *id).collect();
        waiting.into_iter().for_each(|id| self.done(context, id, Said::TryAgain));
    }

    /// `orders::begin`: to the leader, wherever that is.
    fn order(&mut self, context: &mut Context<'_>, id: u64, order: Order) {
        if let Some(job) = self.unlocked_mut().jobs.get_mut(&id) {
            job.stage = Stage::Change;
        }
        let leadership = self.unlocked_mut().raft.leadership(context.db);
        match leadership.leader {
            Some(_) if leadership.am_leader => drop(self.take_order(context, ReplyTo::Job(id), order)),
            Some(leader) => {
                self.ask(context, leader, &forwarded(ForwardedRequest::Order(order)), Asked::Order(id));
            }
            None => self.done(context, id, Said::TryAgain),
        }
    }

    pub(super) fn operated(&mut self, context: &mut Context<'_>, id: u64, begun: Result<Epoch, WireError>) {
        let said = match begun {
            Ok(operation) => Said::Begun(operation),
            Err(error) if error.code == Code::NotFound => Said::NotFound,
            Err(error) if error.code == Code::Conflict => Said::Conflict,
            Err(_) => Said::TryAgain,
        };
        self.done(context, id, said);
    }

    /// `keys::change`: to the leader, wherever that is.
    fn change(&mut self, context: &mut Context<'_>, id: u64, change: KeyChange) {
        if let Some(job) = self.unlocked_mut().jobs.get_mut(&id) {
            job.stage = Stage::Change;
        }
        let leadership = self.unlocked_mut().raft.leadership(context.db);
        match leadership.leader {
            Some(_) if leadership.am_leader => drop(self.take_change(context, ReplyTo::Job(id), change)),
            Some(leader) => {
                self.ask(context, leader, &forwarded(ForwardedRequest::Change(change)), Asked::Change(id));
            }
            None => self.done(context, id, Said::TryAgain),
        }
    }

    pub(super) fn changed(&mut self, context: &mut Context<'_>, id: u64, made: Result<KeyVersionId, WireError>) {
        match made {
            Ok((uid, version)) => {
                if let Some(job) = self.unlocked_mut().jobs.get_mut(&id) {
                    job.stage = Stage::Made(uid, version);
                }
            }
            Err(error) if error.code == Code::NotFound => self.done(context, id, Said::NotFound),
            Err(error) if error.code == Code::Conflict => self.done(context, id, Said::Conflict),
            Err(_) => self.done(context, id, Said::TryAgain),
        }
    }

    pub(super) fn refuse_job(&mut self, context: &mut Context<'_>, id: u64) {
        self.done(context, id, Said::TryAgain);
    }

    /// The answer is read from this node's own state, which must hold the very version that was made, ready for use.
    fn read_back(&mut self, context: &mut Context<'_>, id: u64, uid: KeyUid, version: KeyVersion) {
        let unlocked = self.unlocked_mut();
        if unlocked.state.version(uid, version).is_some_and(|version| version.ready) {
            return self.done(context, id, Said::Made { uid, version });
        }
        if unlocked.jobs.get(&id).is_some_and(|job| context.now_ms >= job.since_ms + DEADLINE_MS) {
            self.done(context, id, Said::TryAgain);
        }
    }
}

/// The newest version that t holders have checked.
fn newest_ready(state: &State, name: &KeyName) -> Option<KeyVersionId> {
    let key = state.key_by_name(name)?;
    Some((key.uid, key.newest_ready()?.version))
}

/// What a client asked of this node, on its way to the leader.
fn forwarded(request: ForwardedRequest) -> PeerRequest {
    let caller = Caller::operator(
        quorate_shares::signature::PublicKey([0; 32]),
        Door::Client,
        "127.0.0.1:4711".parse().expect("an address"),
    );
    PeerRequest::Forwarded(Box::new(Forwarded { caller, request }))
}
