//! The leader's loop: `leader::run`, one step of the plan at a time.

use std::collections::BTreeSet;

use quorate_node::cluster::leader::{self, JoinerSeen};
use quorate_node::cluster::roster_update::is_denied;
use quorate_node::messages::peer::{PeerRefusal, PeerReply, PeerRequest, Report};
use quorate_node::peers::propose;
use quorate_raft::command::{Begin, Change, Command, Operation};
use quorate_raft::idle::Idlers;
use quorate_raft::plan::{self, Patience, View};
use quorate_raft::state::MemberState;
use quorate_shares::ids::{Epoch, NodeId};

use crate::model::node::apply::Purpose;
use crate::model::node::cluster::roster_update::VaultGate;
use crate::model::node::{Asked, Context, Daemon, Killed};
use crate::model::raft::Wanted;

/// Pause after a step of the plan.
const STEP_MS: u64 = 400;
/// A learner that lacks fewer entries than this may vote.
const NEAR: u64 = 8;
/// What a leader waits for is waited for a shorter time than in the program, so that it happens in a run.
const PATIENCE: Patience = Patience { rekey_ms: 15_000, joiner_ms: 12_000, member_ms: 10_000 };

/// The step of the plan that is under way.
#[derive(Default)]
pub(in crate::model::node) struct Step {
    again_ms: u64,
    /// How many holders had acknowledged an epoch when the rest were asked.
    acknowledged: Option<(Epoch, usize)>,
    /// Members that must say that they know the ACTIVE epoch before the one in front of it is retired.
    unaware: Option<(Epoch, Epoch, BTreeSet<NodeId>)>,
}

impl Daemon {
    pub(in crate::model::node) fn lead(&mut self, context: &mut Context<'_>) -> Result<(), Killed> {
        let now_ms = context.now_ms;
        let unlocked = self.unlocked_mut();
        let active_ms = unlocked.serving.for_ms(unlocked.active_epoch(), now_ms);
        if !unlocked.raft.leadership(context.db).am_leader {
            (unlocked.step, unlocked.joiner, unlocked.idlers) =
                (Step::default(), JoinerSeen::default(), Idlers::default());
            return Ok(());
        }
        if now_ms < unlocked.step.again_ms {
            return Ok(());
        }
        unlocked.step.again_ms = now_ms + STEP_MS;
        let view = self.view(context, active_ms);
        let step = plan::next(&self.unlocked_mut().state, &view);
        if !matches!(step, plan::Step::Retire { .. }) {
            self.unlocked_mut().step.unaware = None;
        }
        self.follow_plan(context, step, &view)?;
        self.verify_new(context);
        Ok(())
    }

    /// `leader::view`.
    fn view(&mut self, context: &Context<'_>, active_ms: u64) -> View {
        let (me, present) = (self.me.node, self.present(context.now_ms));
        let last = context.db.now().last_index();
        let unlocked = self.unlocked_mut();
        let membership = unlocked.raft.membership(context.db);
        let settled = membership.committed && !membership.is_joint();
        let voters = membership.newest();
        let near = |node: &&NodeId| unlocked.raft.matched(**node) + NEAR >= last;
        let caught_up: BTreeSet<_> = membership.learners.iter().filter(near).copied().collect();
        let joining = unlocked.state.operations.running.as_ref().and_then(|running| running.operation.joining());
        let unaware = unlocked.step.unaware.as_ref().map(|(_, _, unaware)| unaware.clone()).unwrap_or_default();
        let members = &unlocked.state.members;
        let locks_first = |node: &NodeId| members.get(node).is_some_and(|it| it.state == MemberState::Joining);
        let able = |node: &NodeId| voters.contains(node) || caught_up.contains(node) || locks_first(node);
        let able = present.iter().copied().filter(able).collect();
        let idle = unlocked.idlers.look(&unlocked.state, &able, &unaware, context.now_ms, PATIENCE.member_ms);
        let acting = present.difference(&idle).copied().collect();
        let joiner_silent_ms = unlocked.joiner.silent_ms(joining, &acting, context.now_ms);
        let (learners, patience) = (membership.learners, PATIENCE);
        View { me, present, idle, voters, learners, settled, caught_up, joiner_silent_ms, active_ms, patience }
    }

    fn follow_plan(&mut self, context: &mut Context<'_>, step: plan::Step, view: &View) -> Result<(), Killed> {
        match step {
            plan::Step::AwaitFounding => {
                let found = context.watch.found.clone();
                self.propose(context, Change::Found(found), Purpose::Nothing);
            }
            plan::Step::Nothing
            | plan::Step::FinishVoters
            | plan::Step::AwaitJoiner { .. }
            | plan::Step::AwaitShareKeys { .. }
            | plan::Step::AwaitLocks { .. }
            | plan::Step::AwaitHolders { .. } => {}
            plan::Step::Propose(change) => drop(self.propose(context, change, Purpose::Nothing)),
            plan::Step::Rekey => self.begin(context, Operation::Rekey),
            plan::Step::GiveUpJoiner { node } => self.begin(context, Operation::Revoke { nodes: [node].into() }),
            plan::Step::TransferLeadership { to } => {
                let to: Vec<NodeId> = to.into_iter().collect();
                if let Some(to) = context.dice.pick(&to) {
                    self.unlocked_mut().raft.transfer_leadership(context.db, to);
                }
            }
            plan::Step::ChangeVoters { voters, revoke } => {
                let purpose = leader::purpose(&view.voters, &voters, revoke);
                let roster = &self.vault().roster;
                let denied = view.voters.union(&voters).copied().filter(|node| is_denied(roster, *node)).collect();
                let (reachable, denied) = (&view.present, &denied);
                self.change_members(context, Wanted::Voters { voters, purpose, reachable, denied })?;
            }
            plan::Step::AddLearner { node } => self.change_members(context, Wanted::Learner(node))?,
            plan::Step::RemoveLearner { node } => self.change_members(context, Wanted::NoLearner(node))?,
            plan::Step::Reshare { epoch, versions, .. } => self.reshare(context, epoch, versions),
            plan::Step::CollectAcks { epoch, needed, missing, .. } => {
                let acknowledged = self.unlocked_mut().state.epoch(epoch).map_or(0, |epoch| epoch.acknowledged());
                let asked = self.unlocked_mut().step.acknowledged.replace((epoch, acknowledged));
                // There are enough, and the rest will not.
                if needed == 0 && asked == Some((epoch, acknowledged)) {
                    self.propose(context, Change::ActivateEpoch { epoch }, Purpose::Nothing);
                } else {
                    self.collect_acks(context, epoch, missing);
                }
            }
            plan::Step::Retire { epoch, active, members } => self.retire(context, epoch, active, members),
        }
        Ok(())
    }

    fn begin(&mut self, context: &mut Context<'_>, operation: Operation) {
        let (request, accept_no_redundancy, abandon) = (context.dice.bytes(), operation.revokes(), BTreeSet::new());
        let begin = Begin { request, operation, accept_no_redundancy, abandon };
        self.propose(context, Change::Begin(begin), Purpose::Nothing);
    }

    fn change_members(&mut self, context: &mut Context<'_>, wanted: Wanted<'_>) -> Result<(), Killed> {
        let Some(unlocked) = &mut self.unlocked else { return Ok(()) };
        let mut gate = VaultGate::new(&mut self.vault);
        unlocked.raft.change_members(wanted, (context.db, &mut gate), context.now_ms)
    }

    /// `leader::unaware`: an epoch is over once every member that is there knows the next one.
    fn retire(&mut self, context: &mut Context<'_>, epoch: Epoch, active: Epoch, members: Vec<NodeId>) {
        let me = self.me.node;
        let unaware: BTreeSet<NodeId> = members.into_iter().filter(|&member| member != me).collect();
        let asked = unaware.clone();
        self.unlocked_mut().step.unaware = Some((epoch, active, unaware));
        for member in asked {
            self.ask(context, member, &PeerRequest::Report, Asked::Report(member, active));
        }
        self.knows(context, me, active);
    }

    /// `member` knows that `active` is the ACTIVE epoch.
    pub(in crate::model::node) fn knows(&mut self, context: &mut Context<'_>, member: NodeId, active: Epoch) {
        let step = &mut self.unlocked_mut().step;
        let Some((epoch, expected, unaware)) = &mut step.unaware else { return };
        unaware.remove(&member);
        if *expected == active && unaware.is_empty() {
            let epoch = *epoch;
            step.unaware = None;
            self.propose(context, Change::RetireEpoch { epoch }, Purpose::Nothing);
        }
    }

    /// `status::report`.
    pub(in crate::model::node) fn report(&mut self) -> PeerReply {
        let (phase, lock_generation) = (self.phase, self.vault().lock.as_ref().map_or(0, |lock| lock.generation()));
        let epoch = self.unlocked_mut().active_epoch().unwrap_or(Epoch(0));
        let (applied, old_copies, alarms, operation) = (0, None, Vec::new(), None);
        let unreached = BTreeSet::new();
        PeerReply::Report(Report { phase, applied, lock_generation, old_copies, epoch, alarms, operation, unreached })
    }

    /// `propose::propose_for`.
    pub(in crate::model::node) fn answer_propose(
        &mut self,
        context: &mut Context<'_>,
        from: NodeId,
        command: Command,
    ) -> PeerReply {
        if !propose::is_allowed(&self.unlocked_mut().state, from, &command.change) {
            return PeerReply::Refused(PeerRefusal::Malformed);
        }
        match self.propose(context, command.change, Purpose::Nothing) {
            true => PeerReply::Done,
            false => PeerReply::Refused(PeerRefusal::NotLeader(None)),
        }
    }
}
