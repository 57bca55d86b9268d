//! The leader's loop, operations, roster updates, status and alarms.

pub mod alarms;
pub mod invitations;
pub mod leader;
pub mod orders;
pub mod replica;
pub mod roster_update;
pub mod status;
pub mod verify;

use std::time::Duration;

/// How long a holder may take to open and check a list of shares.
const HOLDER: Duration = Duration::from_secs(5);
/// Pause after a step that did not succeed.
const PAUSE: Duration = Duration::from_millis(100);
