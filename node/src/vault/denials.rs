//! Section 7: which nodes this node refuses, and by which log entry.
//!
//! The roster says only that a member is denied. Scenario: a denial comes from an entry that was not committed, and another
//! leader drops that entry. Then the denial ends. A node that restarts can tell this only if it knows the entry.
//!
//! ```text
//! n u8 (1..=64) | n x { node_id u64 | term u64 | leader u64 | index u64 }
//! ```
//! In order of the ids. The section is absent if no node is denied.

use quorate_raft::Denial;

use super::roster::RosterLogId;
use crate::vault::layout::{FormatError, Reader, Writer};

/// Most denials. A node that was revoked for good moves to the second list of the roster, and is not here any more.
pub const DENIALS_MAX: usize = 64;

pub(super) fn write(denials: &[Denial], writer: &mut Writer) {
    writer.count(denials.len());
    for denial in denials {
        writer.u64(denial.node.0);
        RosterLogId::from(denial.by).write(writer);
    }
}

pub(super) fn read(reader: &mut Reader<'_>) -> Result<Vec<Denial>, FormatError> {
    let denials = (0..reader.count(DENIALS_MAX, "denials")?)
        .map(|_| Ok(Denial { node: reader.node()?, by: RosterLogId::read(reader)?.place() }));
    let denials = denials.collect::<Result<Vec<_>, FormatError>>()?;
    match !denials.is_empty() && denials.is_sorted_by(|a, b| a.node < b.node) {
        true => Ok(denials),
        false => Err(FormatError::Invalid("denials")),
    }
}
