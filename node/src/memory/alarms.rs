//! The open alarms of a node, in memory: one for each thing at each node, and a bounded number of them.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use quorate_client::wire::Alarm;
use tokio::sync::Notify;

/// Alarms kept at most; beyond, the oldest makes room.
pub const ALARMS_MAX: usize = 64;

/// Which alarms are meant.
pub type Which = Option<BTreeSet<String>>;

/// The open alarms of a node.
#[derive(Default)]
pub struct Alarms {
    open: Mutex<Vec<Alarm>>,
    changed: Notify,
    /// What the file holds; `None` until it was read.
    pub durable: tokio::sync::Mutex<Option<Vec<Alarm>>>,
}

impl Alarms {
    /// Opens an alarm, unless one of this code about this node is open; returns whether it is new.
    pub fn raise(&self, alarm: Alarm) -> bool {
        let mut open = self.open.lock();
        let new = !open.iter().any(|known| is_same(known, &alarm));
        if new {
            put(&mut open, alarm);
            self.changed.notify_one();
        }
        new
    }

    /// Closes the alarms that are `over`.
    pub fn close(&self, over: impl Fn(&Alarm) -> bool) {
        self.open.lock().retain(|alarm| !over(alarm));
        self.changed.notify_one();
    }

    /// The open alarms, oldest first.
    pub fn open(&self) -> Vec<Alarm> {
        self.open.lock().clone()
    }

    /// Returns when an alarm was raised or closed since this was last asked.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes up what was open before this start; what was raised since goes behind it.
    pub fn take_up(&self, stored: Vec<Alarm>) {
        let mut open = self.open.lock();
        let since = std::mem::replace(&mut *open, stored);
        for alarm in since {
            if !open.iter().any(|known| is_same(known, &alarm)) {
                put(&mut open, alarm);
            }
        }
    }
}

/// Whether both alarms are about the same thing at the same node.
/// Where the node has no name that is its own, as a former member whose name another bears, the message says which it is.
pub fn is_same(one: &Alarm, other: &Alarm) -> bool {
    one.code == other.code && one.node == other.node && (one.node.is_some() || one.message == other.message)
}

fn put(open: &mut Vec<Alarm>, alarm: Alarm) {
    if open.len() >= ALARMS_MAX {
        open.remove(0);
    }
    open.push(alarm);
}

/// Whether an alarm is one of those that are meant.
pub fn is_meant(which: &Which, alarm: &Alarm) -> bool {
    which.as_ref().is_none_or(|codes| codes.contains(&alarm.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alarm(code: &str, node: &str, since_ms: u64) -> Alarm {
        let node = Some(node.parse().expect("a name"));
        Alarm { code: code.to_owned(), message: format!("{code} happened"), node, since_ms }
    }

    #[test]
    fn one_alarm_about_one_thing_at_one_node() {
        let alarms = Alarms::default();
        assert!(alarms.raise(alarm("stale_image", "n2", 1)));
        assert!(!alarms.raise(alarm("stale_image", "n2", 2)), "it is open since the first time");
        assert!(alarms.raise(alarm("stale_image", "n3", 3)) && alarms.raise(alarm("wrong_share", "n2", 4)));
        assert_eq!(alarms.open().iter().map(|alarm| alarm.since_ms).collect::<Vec<_>>(), [1, 3, 4]);
        alarms.close(|alarm| is_meant(&Some(BTreeSet::from(["stale_image".to_owned()])), alarm));
        assert_eq!(alarms.open(), [alarm("wrong_share", "n2", 4)]);
        assert!(alarms.raise(alarm("stale_image", "n2", 5)), "it happened again since");
        alarms.close(|alarm| is_meant(&None, alarm));
        assert_eq!(alarms.open(), []);
    }

    /// Mutated: held apart by the name alone, the second is not raised.
    #[test]
    fn nodes_without_a_name_of_their_own_are_told_apart_by_what_is_said_of_them() {
        let alarms = Alarms::default();
        let former = |id| Alarm { node: None, message: format!("node {id} asks"), ..alarm("former_member", "n2", 1) };
        assert!(alarms.raise(former(2)) && alarms.raise(former(5)) && !alarms.raise(former(2)));
    }

    #[test]
    fn alarms_are_bounded_and_the_newest_stay() {
        let alarms = Alarms::default();
        for number in 0..=ALARMS_MAX as u64 {
            alarms.raise(alarm("stale_image", &format!("n{number}"), number));
        }
        assert_eq!(alarms.open().len(), ALARMS_MAX);
        assert_eq!((alarms.open()[0].since_ms, alarms.open()[ALARMS_MAX - 1].since_ms), (1, ALARMS_MAX as u64));
    }

    #[test]
    fn what_was_open_before_a_start_stays_open_since_then() {
        let alarms = Alarms::default();
        alarms.raise(alarm("stale_image", "n2", 7));
        alarms.raise(alarm("wrong_share", "n2", 8));
        alarms.take_up(vec![alarm("stale_image", "n2", 1), alarm("admitted", "n3", 2)]);
        assert_eq!(alarms.open().iter().map(|alarm| alarm.since_ms).collect::<Vec<_>>(), [1, 2, 8]);
    }
}
