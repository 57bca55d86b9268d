//! Which caller a request of a client has: the one place where a credential is looked up.

use quorate_client::conn::PeerInfo;
use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_raft::Replica;

use crate::messages::caller::{Caller, Door, Principal, Restrictions};
use crate::service::RequestRow;

/// Who asks on a connection whose other side proved its key in the handshake.
///
/// # Errors
/// [`Code::Denied`] for a key that this cluster does not know.
pub fn authenticate(replica: &Replica, peer: &PeerInfo, door: Door) -> Result<Caller, WireError> {
    if replica.read(|state| state.operators.contains_key(&peer.key)) {
        return Ok(Caller::operator(peer.key, door, peer.remote));
    }
    Err(WireError::new(Code::Denied, "the cluster does not know this key")
        .hint("check that the client file and the token file belong to the same cluster"))
}

/// Whether `caller` may have what `row` describes. An operator may do everything, and no other client is known yet.
///
/// # Errors
/// [`Code::Denied`].
pub fn permit(caller: &Caller, row: &RequestRow<'_>) -> Result<(), WireError> {
    let Restrictions::Unrestricted = caller.restrictions;
    match caller.who {
        Principal::Operator => Ok(()),
        Principal::Member(_) | Principal::MachineOwner => {
            Err(WireError::new(Code::Denied, format!("{} may not ask for {}", caller.who, row.name))
                .hint("clients show the key of an operator"))
        }
    }
}
