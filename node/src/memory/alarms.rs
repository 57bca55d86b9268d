//! The open alarms of a node, in memory. There is one alarm for each code and node, and their number is bounded.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use quorate_client::wire::Alarm;
use tokio::sync::Notify;

/// Alarms kept at most. A further alarm replaces the oldest.
pub const ALARMS_MAX: usize = 64;
/// Longest message of an alarm in bytes. The rest of a longer one is cut off: the alarms of all nodes are one answer.
pub const MESSAGE_BYTES_MAX: usize = 4096;

/// The codes of the alarms to close; `None` means all.
pub type Which = Option<BTreeSet<String>>;

#[derive(Default)]
pub struct Alarms {
    open: Mutex<Vec<Alarm>>,
    changed: Notify,
    /// The content of the file; `None` until it was read.
    pub durable: tokio::sync::Mutex<Option<Vec<Alarm>>>,
}

impl Alarms {
    /// Opens an alarm. If one with this code about this node is open, it only gets the new message. Returns whether the alarm is new.
    pub fn raise(&self, mut alarm: Alarm) -> bool {
        cut(&mut alarm.message, MESSAGE_BYTES_MAX);
        let mut open = self.open.lock();
        match open.iter_mut().find(|known| is_same(known, &alarm)) {
            None => {
                add(&mut open, alarm);
                self.changed.notify_one();
                true
            }
            Some(known) => {
                if known.message != alarm.message {
                    known.message = alarm.message;
                    self.changed.notify_one();
                }
                false
            }
        }
    }

    /// Closes the alarms for which `over` is true.
    pub fn close(&self, over: impl Fn(&Alarm) -> bool) {
        self.open.lock().retain(|alarm| !over(alarm));
        self.changed.notify_one();
    }

    /// The open alarms, oldest first.
    pub fn open(&self) -> Vec<Alarm> {
        self.open.lock().clone()
    }

    /// Returns once an alarm was raised or closed since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Adds the alarms that were open before this start. Alarms raised since the start come after them.
    pub fn take_up(&self, stored: Vec<Alarm>) {
        let mut open = self.open.lock();
        let since = std::mem::replace(&mut *open, stored);
        for alarm in since {
            if !open.iter().any(|known| is_same(known, &alarm)) {
                add(&mut open, alarm);
            }
        }
    }
}

/// Cuts off what is longer than `bytes_max`.
pub fn cut(text: &mut String, bytes_max: usize) {
    text.truncate(text.floor_char_boundary(bytes_max));
}

/// Whether both alarms have the same code and are about the same node.
///
/// An alarm may have no node name: a former member has none if a member has its name now. Then the message names the node, so
/// the messages are compared.
pub fn is_same(one: &Alarm, other: &Alarm) -> bool {
    one.code == other.code && one.node == other.node && (one.node.is_some() || one.message == other.message)
}

fn add(open: &mut Vec<Alarm>, alarm: Alarm) {
    if open.len() >= ALARMS_MAX {
        open.remove(0);
    }
    open.push(alarm);
}

/// Whether `which` includes the alarm.
pub fn is_meant(which: &Which, alarm: &Alarm) -> bool {
    which.as_ref().is_none_or(|codes| codes.contains(&alarm.code))
}

#[cfg(test)]
mod tests {
    use quorate_client::frame::BODY_BYTES_MAX;
    use quorate_client::wire::{self, Answered, Response};
    use quorate_raft::state::MEMBERS_MAX;

    use super::*;

    fn alarm(code: &str, node: &str, since_ms: u64) -> Alarm {
        let node = Some(node.parse().expect("a name"));
        Alarm { code: code.to_owned(), message: format!("{code} happened"), node, since_ms }
    }

    #[test]
    fn one_alarm_about_one_thing_at_one_node() {
        let alarms = Alarms::default();
        assert!(alarms.raise(alarm("stale_image", "n2", 1)));
        let newer = Alarm { message: "again".to_owned(), ..alarm("stale_image", "n2", 2) };
        assert!(!alarms.raise(newer), "it is open since the first time");
        assert_eq!(
            (alarms.open()[0].since_ms, alarms.open()[0].message.as_str()),
            (1, "again"),
            "with the newest message"
        );
        assert!(alarms.raise(alarm("stale_image", "n3", 3)) && alarms.raise(alarm("wrong_share", "n2", 4)));
        assert_eq!(alarms.open().iter().map(|alarm| alarm.since_ms).collect::<Vec<_>>(), [1, 3, 4]);
        alarms.close(|alarm| is_meant(&Some(BTreeSet::from(["stale_image".to_owned()])), alarm));
        assert_eq!(alarms.open(), [alarm("wrong_share", "n2", 4)]);
        assert!(alarms.raise(alarm("stale_image", "n2", 5)), "it happened again since");
        alarms.close(|alarm| is_meant(&None, alarm));
        assert_eq!(alarms.open(), []);
    }

    /// Mutated: if only the names are compared, the second alarm is not raised.
    #[test]
    fn alarms_about_nodes_without_a_name_differ_by_their_messages() {
        let alarms = Alarms::default();
        let former = |id| Alarm { node: None, message: format!("node {id} asks"), ..alarm("former_member", "n2", 1) };
        assert!(alarms.raise(former(2)) && alarms.raise(former(5)) && !alarms.raise(former(2)));
    }

    /// The alarms of all nodes are one answer. Mutated: with messages of any length it can exceed a message.
    #[test]
    fn the_alarms_of_all_nodes_fit_one_message() {
        let alarms = Alarms::default();
        for number in 0..ALARMS_MAX as u64 {
            let message = "é".repeat(1 << 20);
            alarms.raise(Alarm { message, ..alarm("stale_image", &format!("n{number}"), number) });
        }
        let all: Vec<_> = std::iter::repeat_n(alarms.open(), MEMBERS_MAX).flatten().collect();
        assert_eq!(all.len(), ALARMS_MAX * MEMBERS_MAX);
        let answer = wire::encode(&Answered::always(Ok(Response::Alarms(all))));
        assert!(answer.len() < BODY_BYTES_MAX, "{} bytes", answer.len());
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
