//! The leader's loop: `members::run`, one step of the plan at a time.

use std::collections::BTreeSet;

use quorate_node::peer::{PeerReply, PeerRequest, Refusal, Report};
use quorate_raft::command::{Begin, Change, Command, Operation};
use quorate_raft::plan::{self, Patience, View};
use quorate_shares::ids::{Epoch, NodeId};

use super::apply::Purpose;
use super::{Asked, Context, Daemon};

/// Pause after a step of the plan.
const STEP_MS: u64 = 400;
/// What a leader waits for is waited for a shorter time than in the program, so that it happens in a run.
const PATIENCE: Patience = Patience { rekey_ms: 15_000, joiner_ms: 12_000 };

/// The step of the plan that is under way.
#[derive(Default)]
pub(super) struct Step {
    again_ms: u64,
    /// How many holders had acknowledged an epoch when the rest were asked.
    acknowledged: Option<(Epoch, usize)>,
    /// Members that must say that they know the ACTIVE epoch before the one in front of it is retired.
    unaware: Option<(Epoch, Epoch, BTreeSet<NodeId>)>,
}

impl Daemon {
    pub(super) fn lead(&mut self, context: &mut Context<'_>) {
        let now_ms = context.now_ms;
        let unlocked = self.unlocked_mut();
        if !unlocked.raft.leadership(context.db).am_leader {
            unlocked.step = Step::default();
            return;
        }
        if now_ms < unlocked.step.again_ms {
            return;
        }
        unlocked.step.again_ms = now_ms + STEP_MS;
        let view = self.view(context);
        let step = plan::next(&self.unlocked_mut().state, &view);
        self.follow_plan(context, step);
        self.verify_new(context);
    }

    fn view(&mut self, context: &Context<'_>) -> View {
        let (me, present) = (self.me.node, self.present(context.now_ms));
        let all = View::of_all(&self.unlocked_mut().state, me, context.watch.wall_ms);
        View { present, patience: PATIENCE, ..all }
    }

    fn follow_plan(&mut self, context: &mut Context<'_>, step: plan::Step) {
        match step {
            plan::Step::AwaitFounding => {
                let found = context.watch.found.clone();
                self.propose(context, Change::Found(found), Purpose::Nothing);
            }
            plan::Step::Nothing | plan::Step::AwaitShareKeys { .. } | plan::Step::AwaitLocks { .. } => {}
            plan::Step::Propose(change) => drop(self.propose(context, change, Purpose::Nothing)),
            plan::Step::Rekey => {
                let request = context.dice.bytes();
                let (operation, abandon) = (Operation::Rekey, BTreeSet::new());
                let begin = Begin { request, operation, accept_no_redundancy: false, abandon };
                self.propose(context, Change::Begin(begin), Purpose::Nothing);
            }
            plan::Step::Redeal { epoch, versions, .. } => self.redeal(context, epoch, versions),
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
            step => panic!("the members never change: {step:?}"),
        }
    }

    /// `members::retire`: an epoch is over once every member that is there knows the next one.
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
    pub(super) fn knows(&mut self, context: &mut Context<'_>, member: NodeId, active: Epoch) {
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
    pub(super) fn report(&mut self) -> PeerReply {
        let (phase, lock_generation) = (self.phase, self.vault().lock.as_ref().map_or(0, |lock| lock.generation()));
        let epoch = self.unlocked_mut().active_epoch().unwrap_or(Epoch(0));
        let (applied, old_copies, alarms, operation) = (0, None, Vec::new(), None);
        PeerReply::Report(Report { phase, applied, lock_generation, old_copies, epoch, alarms, operation })
    }

    /// `proposal::answer`.
    pub(super) fn answer_propose(&mut self, context: &mut Context<'_>, command: Command) -> PeerReply {
        match self.propose(context, command.change, Purpose::Nothing) {
            true => PeerReply::Done,
            false => PeerReply::Refused(Refusal::NotLeader(None)),
        }
    }
}
