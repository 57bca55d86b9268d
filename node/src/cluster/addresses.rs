//! Where members listen: what an operator orders, checked and put into the replicated state.
//!
//! The rosters follow the state ([`crate::cluster::roster_update`]), and with them sessions, client files and the vaults that a
//! locked node reads. An address is only a place to dial. Who answers there must prove the key of the member.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_raft::command::Change;
use quorate_raft::refusal::Refusal;
use quorate_raft::state::ADDRESSES_MAX;
use quorate_raft::{ProposeError, Replica};
use quorate_shares::ids::NodeName;
use tracing::info;

use crate::base::config::can_be_dialled;
use crate::cluster::orders::{catch_up, member_named};
use crate::messages::caller::Caller;
use crate::node::Node;
use crate::vault::layout::Address;

/// Checks what an operator typed.
///
/// # Errors
/// [`Code::BadRequest`], which names the address.
pub fn check(addresses: &[String]) -> Result<(), WireError> {
    let bad = |message: String| WireError::new(Code::BadRequest, message);
    if !(1..=ADDRESSES_MAX).contains(&addresses.len()) {
        return Err(bad(format!("a node has 1 to {ADDRESSES_MAX} addresses, not {}", addresses.len())));
    }
    if let Some(wrong) = addresses.iter().find(|address| address.parse::<Address>().is_err()) {
        return Err(bad(format!("{wrong:?} is not HOST:PORT")).hint("10.0.0.2:7250, [fd00::2]:7250 or n2.example:7250"));
    }
    if let Some(wrong) = addresses.iter().find(|address| !can_be_dialled(address)) {
        let why = format!("{wrong} is no address that others can dial");
        return Err(bad(why).hint("name the address at which the other nodes reach it"));
    }
    if addresses.iter().collect::<BTreeSet<_>>().len() < addresses.len() {
        return Err(bad("an address is given twice".to_owned()));
    }
    Ok(())
}

/// The leader's side: records where the member `name` listens. Repeating it changes nothing.
///
/// # Errors
/// The error for the client.
pub async fn set(
    node: &Arc<Node>,
    replica: &Replica,
    name: &NodeName,
    addresses: Vec<String>,
    caller: &Caller,
) -> Result<(), WireError> {
    check(&addresses)?;
    catch_up(node, replica).await?;
    let (member, taken) = replica.read(|state| {
        let others = state.members.values().filter(|other| other.name != *name);
        let mut theirs = others.flat_map(|other| other.addresses.iter().map(|at| (other.name.clone(), at.clone())));
        Ok::<_, WireError>((member_named(state, name)?, theirs.find(|(_, at)| addresses.contains(at))))
    })?;
    if let Some((other, address)) = taken {
        return Err(WireError::new(Code::Conflict, format!("{other} is recorded at {address}"))
            .hint(format!("if {other} has moved, record its new address first")));
    }
    let change = Change::SetAddresses { node: member, addresses: addresses.clone() };
    match replica.propose(node.leader.command(replica, change)).await {
        Ok(_) => {
            info!(%name, ?addresses, %caller, "the addresses of a node are recorded");
            Ok(())
        }
        Err(ProposeError::Refused(Refusal::UnknownMember { .. })) => {
            Err(WireError::new(Code::NotFound, format!("{name} is no member any more")))
        }
        Err(ProposeError::Refused(refusal)) => Err(WireError::new(Code::Conflict, refusal.to_string())),
        Err(error) => Err(WireError::new(Code::NoQuorum, format!("the leader did not take it: {error}"))
            .hint("try again in a moment")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_where_they_come_in() {
        let check = |addresses: &[&str]| check(&addresses.iter().map(ToString::to_string).collect::<Vec<_>>());
        check(&["10.0.0.2:7250", "[fd00::2]:7250", "n2.example:7250"]).expect("the control");
        let nine: Vec<String> = (1..=9).map(|port| format!("n2:{port}")).collect();
        let nine: Vec<&str> = nine.iter().map(String::as_str).collect();
        for bad in [&[][..], &["10.0.0.2"], &["n2:0"], &["n 2:1"], &["n2:1", "n2:1"], &["[::]:7250"], &nine] {
            assert_eq!(check(bad).expect_err("refused").code, Code::BadRequest, "{bad:?}");
        }
    }
}
