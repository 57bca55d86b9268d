//! What an operator orders, in the words of the command line.

use std::collections::BTreeSet;
use std::fmt;

use quorate_testnet::Error;
use quorate_testnet::procs::Tool;

use super::{Churn, HEALING, MEMBERS_MAX};

/// An operation on the members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    Join(String),
    Remove(String),
    Revoke(Vec<String>),
    Replace { gone: String, new: String },
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join(node) => write!(f, "join {node}"),
            Self::Remove(node) => write!(f, "remove {node}"),
            Self::Revoke(nodes) => write!(f, "revoke {}", nodes.join(" ")),
            Self::Replace { gone, new } => write!(f, "replace {gone} with {new}"),
        }
    }
}

impl Order {
    /// The machine that joins.
    pub(super) fn joiner(&self) -> Option<&str> {
        match self {
            Self::Join(new) | Self::Replace { new, .. } => Some(new),
            Self::Remove(_) | Self::Revoke(_) => None,
        }
    }

    /// The members that leave.
    pub(super) fn leaving(&self) -> Vec<&str> {
        match self {
            Self::Join(_) => Vec::new(),
            Self::Remove(node) => vec![node],
            Self::Revoke(nodes) => nodes.iter().map(String::as_str).collect(),
            Self::Replace { gone, .. } => vec![gone],
        }
    }
}

impl Churn {
    /// Something that a cluster of this size can do.
    pub(super) fn draw_order(&mut self) -> Order {
        let count = self.members.len();
        loop {
            let member = self.pick(&self.members.clone());
            // Two that joined at the same time may have taken the last machines.
            let machine = (!self.free.is_empty()).then(|| self.pick(&self.free.clone()));
            match (self.dice.below(10), machine) {
                (0..=3, Some(new)) if count < MEMBERS_MAX => return Order::Join(new),
                (4 | 5, _) if count > 2 => return Order::Remove(member),
                (6 | 7, _) if count > 2 => return Order::Revoke(self.draw_revoked(member)),
                (8 | 9, Some(new)) if count > 2 => return Order::Replace { gone: member, new },
                _ => {}
            }
        }
    }

    /// One or two, as many as those who stay can do without.
    fn draw_revoked(&mut self, first: String) -> Vec<String> {
        let mut others: BTreeSet<String> = self.members.clone();
        others.remove(&first);
        let spared = self.members.len() - usize::from(self.status.threshold);
        if spared > 1 && self.dice.below(2) == 0 {
            let second = self.pick(&others);
            return vec![first, second];
        }
        vec![first]
    }

    /// Types the command of an order; what goes before it succeeds.
    pub(super) fn give(&mut self, order: &Order) -> Tool {
        self.try_to_give(order).expect("the invitation is good")
    }

    /// Types the command of an order, unless another one has made it pointless.
    pub(super) fn try_to_give(&mut self, order: &Order) -> Result<Tool, Error> {
        Ok(match order {
            Order::Join(new) => {
                let invitation = self.invite();
                self.join(new, &invitation)
            }
            Order::Replace { gone, new } => {
                let invitation = self.invite();
                let words = ["node", "replace", gone, "--with", "-", "--yes"];
                let replace = Tool::start(self.cluster.testnet.quorate(words), invitation.as_bytes())?;
                replace.success(HEALING)?;
                self.join(new, &invitation)
            }
            Order::Remove(node) => self.typed(&["node", "remove", node, "--yes", "--accept-no-redundancy"]),
            Order::Revoke(nodes) => {
                let words = ["node", "revoke"].into_iter().chain(nodes.iter().map(String::as_str));
                // Whatever is away here comes back.
                let back = self.members.iter().flat_map(|member| ["--expect-back", member.as_str()]);
                self.typed(&words.chain(["--yes", "--wait"]).chain(back).collect::<Vec<_>>())
            }
        })
    }

    /// Types it once more. A node that is joining goes on by itself.
    pub(super) fn give_again(&mut self, order: &Order) -> Option<Tool> {
        order.joiner().is_none().then(|| self.give(order))
    }

    /// What is still to be done of it. A replacement may have cost the one its place before the other one was given up. Of the two
    /// nodes that another order left meanwhile neither can go: only who comes is left then.
    pub(super) fn left_of(&self, order: &Order) -> Option<Order> {
        if self.members.len() == 2 {
            return order.joiner().map(|new| Order::Join(new.to_owned()));
        }
        Some(match order {
            Order::Replace { gone, new } if !self.members.contains(gone) => Order::Join(new.clone()),
            Order::Revoke(nodes) => {
                Order::Revoke(nodes.iter().filter(|node| self.members.contains(*node)).cloned().collect())
            }
            other => other.clone(),
        })
    }

    /// Whether the members are as the order would have them.
    pub(super) fn is_done(&self, order: &Order) -> bool {
        let came = order.joiner().is_none_or(|joiner| self.members.contains(joiner));
        came && order.leaving().iter().all(|node| !self.members.contains(*node))
    }

    fn typed(&self, words: &[&str]) -> Tool {
        Tool::start(self.cluster.testnet.quorate(words.iter().copied()), b"").expect("runs")
    }

    fn invite(&self) -> String {
        let invited = self.typed(&["node", "invite"]).success(HEALING).expect("an invitation");
        String::from_utf8(invited).expect("text")
    }

    fn join(&mut self, node: &str, invitation: &str) -> Tool {
        self.cluster.testnet.start(node).expect("starts on an empty disk");
        let mut command = self.cluster.testnet.quorate(["node", "join", "-"]);
        command.arg("--socket").arg(self.cluster.testnet.directory().socket(node));
        Tool::start(command, invitation.as_bytes()).expect("runs")
    }
}
