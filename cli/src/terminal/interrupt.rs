//! Ctrl-C, while a command waits for something that goes on without it.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit;
use crate::failure::Failure;

/// Hears Ctrl-C from when it is made. Before, Ctrl-C ends the command without a word, as it does by default: so this is made
/// before anything is begun.
pub(crate) struct Interrupt(Signal);

impl Interrupt {
    pub(crate) fn listen() -> Result<Self, Failure> {
        let failed = |error| Failure::new(exit::FAILED, format!("cannot listen for Ctrl-C: {error}"));
        signal(SignalKind::interrupt()).map(Self).map_err(failed)
    }

    /// Returns once it was pressed, now or since the last time.
    pub(crate) async fn pressed(&mut self) {
        self.0.recv().await;
    }
}
