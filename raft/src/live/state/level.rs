//! The feature level of the cluster, which the leader raises when every member knows more.

use super::State;
use crate::live::command::Outcome;
use crate::live::refusal::Refusal;
use crate::live::rows::{Row, RowKey, Rows};

/// Raises the feature level. A repetition is answered as done.
pub(super) fn raise_level(state: &mut State, level: u16, rows: &mut Rows) -> Result<Outcome, Refusal> {
    let cluster = state.cluster.as_mut().ok_or(Refusal::NotFounded)?;
    if level < cluster.level {
        return Err(Refusal::LevelFalls { level: cluster.level });
    }
    cluster.level = level;
    rows.put(RowKey::Cluster, Row::Cluster(cluster.clone()));
    Ok(Outcome::LevelRaised { level })
}
