//! What must hold when the trouble is over. A message begins with the code of what was broken.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use quorate_client::wire::{Phase, Role};
use quorate_client::{Context, Options};
use quorate_raft::offline::OfflineStore;
use quorate_raft::state::State;
use quorate_shares::envelope::Ciphertext;
use quorate_testnet::thief::canary;
use quorate_testnet::thief::{self, Loot};
use quorate_testnet::wait_until;
use tempfile::TempDir;

use super::{Churn, HEALING};
use crate::harness::PATIENCE;

/// A secret in some log is looked for every so many turns.
const SEARCH_EVERY: usize = 4;
/// An old image takes the place of its node in one of so many turns.
const BACK_EVERY: usize = 4;
/// Alarms that this test gives reason for.
const EXPECTED_ALARMS: [&str; 3] = ["former_member", "stale_image", "storage_went_back"];

/// The disks of all members at one moment at which nothing was under way.
pub(super) struct Disks {
    _directory: TempDir,
    pub(super) all: Vec<PathBuf>,
}

impl Churn {
    pub(super) fn check(&mut self) {
        let (disks, stores) = self.paid_up();
        let epoch = stores[0].state().active().expect("an active epoch").epoch;
        assert!(epoch >= self.status.epoch && self.status.epoch.0 > 0, "D4: {epoch} after {}", self.status.epoch);
        for store in &stores {
            self.check_members(store.state());
        }
        self.check_records(&stores);
        let loot = self.check_thefts(&disks, stores[0].state());
        if self.tally.orders.is_multiple_of(SEARCH_EVERY) {
            let found = canary::search(self.cluster.testnet.directory().path(), &loot.canaries);
            assert_eq!(found.expect("searches"), [], "S1, S8: a secret lies in the clear");
        }
        for (number, ciphertext) in self.sealed.iter().enumerate() {
            let node = self.members.iter().nth(number % self.members.len());
            let opened = self.cluster.decrypt(node.map(String::as_str), ciphertext);
            let key = format!("churn/{number}");
            assert_eq!(opened.expect("D6, D7: opens"), key.as_bytes(), "D7: {key}");
        }
    }

    /// Waits until no member has a share key of an epoch that is over, and reads all databases.
    fn paid_up(&mut self) -> (Disks, Vec<OfflineStore>) {
        let names: Vec<&str> = self.members.iter().map(String::as_str).collect();
        let mut why = String::new();
        let paid = wait_until("S2: what is owed to be paid", HEALING, || {
            let directory = TempDir::new_in(self.directory.path("")).expect("a directory");
            let all = self.cluster.testnet.steal(&names, directory.path()).expect("steals");
            let mut stores = Vec::new();
            for (name, disk) in names.iter().zip(&all) {
                let (_, bundle) = thief::unlock(disk, &all).expect("D6: all disks together open each lock");
                let store = thief::database(disk, &all).expect("D6: and each database");
                let active = store.state().active()?.epoch;
                let keys: Vec<u64> = bundle.share_keys.iter().map(|key| key.generation.0).collect();
                let operations = &store.state().operations;
                if keys != [active.0] && !(active.0 == 1 && keys.len() == 1) || operations.running.is_some() {
                    why = format!("{name} has share keys {keys:?} in epoch {active}: {operations:?}");
                    return None;
                }
                stores.push(store);
            }
            // Some may be a little behind.
            let newest = stores.iter().map(|store| store.state().operations.clone()).collect::<Vec<_>>();
            newest.windows(2).all(|pair| pair[0] == pair[1]).then(|| (Disks { _directory: directory, all }, stores))
        });
        let (disks, stores) = paid.unwrap_or_else(|error| panic!("{error}: {why}"));
        let epoch = stores[0].state().active().expect("an active epoch").epoch;
        self.tally.rekeys += epoch.0 - self.status.epoch.0;
        let ended = self.status.epoch;
        if epoch > ended {
            // No operator ordered it: a member had been away.
            self.settle();
            assert!(self.status.epoch >= epoch, "D4");
        }
        (disks, stores)
    }

    fn check_members(&self, state: &State) {
        let names: BTreeSet<String> = state.members.values().map(|member| member.name.to_string()).collect();
        assert_eq!(names, self.members, "M1: members");
        let active = state.active().expect("an active epoch");
        let holders: BTreeSet<_> = active.committee.iter().map(|seat| seat.node).collect();
        assert_eq!(holders, state.members.keys().copied().collect(), "M1: every voter holds shares");
        assert_eq!(usize::from(active.threshold), names.len() / 2 + 1, "M1: the threshold");
        let (have, need) = (active.acknowledged(), active.acks_needed());
        assert!(active.epoch.0 == 1 || have >= need, "D1: {have} of {need} acknowledged epoch {}", active.epoch);
        assert!(state.epochs.values().all(|epoch| epoch.epoch == active.epoch || epoch.is_over()), "M2, S2");
        assert!(self.status.nodes.iter().all(|node| node.role != Role::Learner), "M1: {:?}", self.status.nodes);
    }

    /// S5, D5: a record is the same everywhere, and never changes. D3: every version is there and may be used.
    fn check_records(&mut self, stores: &[OfflineStore]) {
        for store in stores {
            let active = store.state().active().expect("an active epoch").epoch;
            for key in store.state().keys.values() {
                for version in key.versions.values().filter(|version| version.ready) {
                    let slot = (key.uid, version.version, active);
                    let record = store.record(slot.0, slot.1, slot.2).expect("it can be read");
                    let record = record.unwrap_or_else(|| panic!("D6: {} {:?} has no record", key.name, version));
                    let known = self.records.entry(slot).or_insert_with(|| record.clone());
                    assert_eq!(*known, record, "S5: two records of {} in epoch {active}", key.name);
                }
            }
        }
    }

    /// S1, S2, S6, S7: what disks of one moment are worth, and those that a thief collected. Returns all that there is.
    fn check_thefts(&mut self, disks: &Disks, state: &State) -> Loot {
        let threshold = usize::from(self.status.threshold);
        let all = thief::rob(&disks.all);
        let active = all.epochs.iter().copied().collect::<Vec<_>>();
        assert_eq!(active, [self.status.epoch], "S2: of which epochs all disks together open shares");
        let mut enough = disks.all.clone();
        while enough.len() > threshold {
            enough.remove(self.dice.below(enough.len()));
        }
        let loot = thief::rob(&enough);
        let agree = loot.keys.iter().all(|key| {
            let other = all.keys.iter().find(|other| other.identity == key.identity);
            other.is_some_and(|other| other.root().same_as(&key.root()))
        });
        assert!(agree && self.is_opened_by(&loot), "S7, the control: {threshold} disks open everything: {loot}");
        let mut few = disks.all.clone();
        while few.len() >= threshold {
            few.remove(self.dice.below(few.len()));
        }
        let loot = thief::rob(&few);
        assert!(loot.is_nothing(), "S1: {} disks of one moment: {loot}", few.len());
        let collected = self.collector.settle(state, self.status.theft_threshold);
        let loot = thief::rob(&collected);
        assert!(loot.keys.is_empty(), "S1: disks of many moments, too few of each epoch: {loot}");
        all
    }

    fn is_opened_by(&self, loot: &Loot) -> bool {
        self.sealed.iter().enumerate().all(|(number, ciphertext)| {
            let ciphertext = Ciphertext::parse_text(ciphertext).expect("our own ciphertext");
            let opened = loot.keys.iter().find_map(|key| key.open(&ciphertext, &Context::empty()));
            opened.is_some_and(|plaintext| plaintext == format!("churn/{number}").as_bytes())
        })
    }

    /// S3, S4: a former member serves no client, whether it still runs or is started again, and says that it is out.
    pub(super) fn former_members_are_refused(&mut self) {
        for node in self.machines() {
            let data = self.cluster.testnet.directory().data(&node);
            let was_member = quorate_node::vault::inspect(&data).is_ok_and(|vault| vault.identity.node.is_some());
            if self.members.contains(&node) || !was_member {
                continue;
            }
            let runs = self.cluster.testnet.is_running(&node).expect("a node");
            if !runs && self.dice.below(2) == 0 {
                continue;
            }
            let begins = fs::read_to_string(self.cluster.testnet.directory().log(&node)).unwrap_or_default().len();
            self.start(&node);
            self.tally.former_members += 1;
            self.is_refused(&node, if runs { 0 } else { begins });
            let options =
                Options { deadline: PATIENCE / 30, patience: std::time::Duration::ZERO, ..Options::default() };
            let client = self.cluster.client_with(Options { node: Some(self.a_member()), ..options });
            let served = self.cluster.block(client.status()).is_ok();
            assert!(served, "the control: members serve");
        }
    }

    /// Waits until a node says that it is not a member, or that no peer opens its lock; it must not serve before.
    fn is_refused(&mut self, node: &str, begins: usize) {
        let refused = wait_until(format!("S4: {node} to be refused"), HEALING, || {
            if !self.cluster.testnet.is_running(node).expect("a node") {
                return Some(());
            }
            let phase = self.cluster.testnet.status(node).ok()?.public.phase;
            assert_ne!(phase, Phase::Serving, "S4: {node} serves");
            let log = fs::read_to_string(self.cluster.testnet.directory().log(node)).unwrap_or_default();
            let refused = log[begins.min(log.len())..].contains("refused to open this node's lock");
            // Those that it knows may all be gone by now.
            let said = refused || self.cluster.testnet.status(node).ok()?.operation.is_some();
            (phase == Phase::Revoked || (phase == Phase::Locked && said)).then_some(())
        });
        refused.unwrap_or_else(|error| panic!("{error}: {:?}", self.cluster.testnet.status(node)));
    }

    /// D4: a disk from before the last operation is started in place of its node: it does not serve. The real one does.
    pub(super) fn go_back_in_time(&mut self) {
        if self.dice.below(BACK_EVERY) > 0 {
            return;
        }
        let Some((node, image)) = self.collector.older_than(self.status.epoch, &self.members) else { return };
        println!("  {node} is started from an old image");
        self.cluster.testnet.kill(&node).expect("dies");
        let aside = TempDir::new_in(self.directory.path("")).expect("a directory");
        let (real, now) = (self.cluster.testnet.directory().data(&node), aside.path().join("now"));
        quorate_testnet::thief::steal::copy(&real, &now).expect("copies");
        let begins = fs::read_to_string(self.cluster.testnet.directory().log(&node)).unwrap_or_default().len();
        self.cluster.testnet.restore(&node, &image).expect("restores");
        self.start(&node);
        self.is_refused(&node, begins);
        self.cluster.testnet.restore(&node, &now).expect("restores");
        self.cluster.start(&[&node]);
        self.cluster.testnet.wait_serving(&[&node]).expect("D4: the real disk serves");
        self.tally.restored += 1;
    }

    /// No alarm is open but those that there is a reason for. They are closed.
    pub(super) fn disarm(&mut self) {
        let status = self.cluster.until("a status", || self.quorum_status());
        let surprising = status.alarms.iter().filter(|alarm| !EXPECTED_ALARMS.contains(&alarm.code.as_str()));
        assert_eq!(surprising.collect::<Vec<_>>(), Vec::<&_>::new(), "alarms that nothing gave reason for");
        if !status.alarms.is_empty() {
            let finished = self.run(&["alarm", "disarm", "--all"]);
            assert!(matches!(finished.code, Some(0 | 5)), "{}", finished.stderr);
        }
    }

    /// Erases every machine that is not a member, so that it can join again.
    pub(super) fn free_machines(&mut self) {
        for node in self.machines() {
            if !self.members.contains(&node) {
                self.cluster.testnet.erase(&node).expect("erases");
                self.collector.forget(&node);
            }
        }
        self.free = self.machines().into_iter().filter(|node| !self.members.contains(node)).collect();
    }

    pub(super) fn machines(&self) -> Vec<String> {
        (1..=super::MACHINES).map(|number| format!("n{number}")).collect()
    }

    fn a_member(&self) -> String {
        self.members.first().expect("there are some").clone()
    }
}
