//! Which caller a request has: the one place where a token is checked.

use std::net::SocketAddr;

use quorate_client::error::Code;
use quorate_client::wire::{Token, WireError};
use quorate_raft::Replica;
use subtle::ConstantTimeEq;

use crate::messages::caller::{Caller, Door, Principal, Restrictions};
use crate::service::RequestRow;

/// Who presents `token`. Only its hash is in the replicated state.
///
/// # Errors
/// [`Code::Denied`] for a token that this cluster does not know.
pub fn authenticate(replica: &Replica, token: &Token, door: Door, remote: SocketAddr) -> Result<Caller, WireError> {
    let presented = token.hash();
    let known = replica.read(|state| state.cluster.as_ref().map(|cluster| cluster.token_hash));
    if known.is_some_and(|known| known.ct_eq(&presented).into()) {
        return Ok(Caller::root(&presented, door, remote));
    }
    Err(WireError::new(Code::Denied, "the token is not valid for this cluster")
        .hint("check that the client file and the token belong to the same cluster"))
}

/// Whether `caller` may have what `row` describes. The root token may do everything, and no other client is known yet.
///
/// # Errors
/// [`Code::Denied`].
pub fn permit(caller: &Caller, row: &RequestRow<'_>) -> Result<(), WireError> {
    let Restrictions::Unrestricted = caller.restrictions;
    match caller.who {
        Principal::RootToken => Ok(()),
        Principal::Member(_) | Principal::MachineOwner => {
            Err(WireError::new(Code::Denied, format!("{} may not ask for {}", caller.who, row.name))
                .hint("clients present a token"))
        }
    }
}
