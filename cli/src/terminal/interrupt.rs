//! Ctrl-C, while a command waits for work that continues without it.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit;
use crate::failure::Failure;

/// Receives Ctrl-C from the time when it is made. Before that, Ctrl-C ends the command without a message. So a command
/// makes it before it begins anything.
pub(crate) struct Interrupt(Signal);

impl Interrupt {
    pub(crate) fn listen() -> Result<Self, Failure> {
        let failed = |error| Failure::new(exit::FAILED, format!("cannot listen for Ctrl-C: {error}"));
        signal(SignalKind::interrupt()).map(Self).map_err(failed)
    }

    /// Returns when Ctrl-C is pressed, or if it was pressed since the last call.
    pub(crate) async fn pressed(&mut self) {
        self.0.recv().await;
    }
}
