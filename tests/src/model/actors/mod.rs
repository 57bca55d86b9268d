//! Who acts on the cluster: clients, an operator, a thief, a leader that proposes nonsense; and the faults that happen to it.

pub(super) mod client;
pub(super) mod faults;
mod faulty_leader;
mod operator;
pub(super) mod thief;
