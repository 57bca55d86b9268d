//! Where members listen.

use quorate_shares::ids::{ADDRESSES_MAX, NodeId, is_address};

use super::State;
use super::joining::put_member;
use crate::live::command::Outcome;
use crate::live::refusal::Refusal;
use crate::live::rows::Rows;

/// Notes where a member listens. What it listened to before is forgotten.
pub(super) fn set_addresses(
    state: &mut State,
    node: NodeId,
    addresses: &[String],
    rows: &mut Rows,
) -> Result<Outcome, Refusal> {
    let mut member = state.members.get(&node).ok_or(Refusal::UnknownMember { node })?.clone();
    check_addresses(node, addresses)?;
    if member.addresses != addresses {
        member.addresses = addresses.to_vec();
        put_member(state, member, rows);
    }
    Ok(Outcome::AddressesSet { node })
}

/// Checks the addresses of one node: how many they are, and their form.
pub(super) fn check_addresses(node: NodeId, addresses: &[String]) -> Result<(), Refusal> {
    // A member writes them into its vault, and its client files, with the same rule.
    let fits = (1..=ADDRESSES_MAX).contains(&addresses.len()) && addresses.iter().all(|address| is_address(address));
    if fits { Ok(()) } else { Err(Refusal::BadAddresses { node }) }
}
