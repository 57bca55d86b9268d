//! Looking things up in the replicated state.

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_raft::state::State;

use crate::lease::renewal;
use crate::service::Call;

/// Looks something up. What is not there is looked up once more, after this node caught up with the leader; only then it
/// counts as `missing`.
pub(super) async fn find<T>(
    call: Call<'_>,
    look: impl Fn(&State) -> Option<T>,
    missing: impl FnOnce() -> WireError,
) -> Result<T, WireError> {
    let Call { node, replica, .. } = call;
    if let Some(found) = replica.read(&look) {
        return Ok(found);
    }
    if let Err(reason) = Box::pin(renewal::catch_up(node, replica)).await {
        let message = format!("not found at {}, which cannot catch up: {reason}", node.name());
        return Err(WireError::new(Code::NoQuorum, message).hint("try again in a moment"));
    }
    replica.read(&look).ok_or_else(missing)
}
