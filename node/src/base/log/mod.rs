//! The log of the daemon: standard error, written by a thread of its own.
//!
//! The log never stops or delays the daemon. A line goes into a bounded queue and never waits. If it cannot be written, because
//! the disk is full, the pipe is closed or its reader is stuck, it is lost and counted, and nothing else happens. Once lines can
//! be written again the log says how many are missing. Lines that come too often are held back by `throttle`. What a panic does is
//! in `panics`.

mod panics;
mod queue;
mod throttle;

use std::io;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

pub use panics::Panics;
pub use queue::Log;

use throttle::Throttle;

/// How long a process that ends waits until its last lines are written.
pub const LAST_LINES: Duration = Duration::from_millis(500);
/// What the log says about itself; not held back.
const TARGET: &str = "quorate::log";

impl Log {
    /// Starts the thread that writes to standard error.
    ///
    /// # Errors
    /// If the system has no descriptor or no thread left.
    pub fn to_stderr() -> io::Result<Self> {
        // A descriptor of its own: a line of this thread that is stuck must not hold the lock of `std::io::stderr`.
        let stderr = std::fs::File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Self::start(stderr)
    }

    /// Sends everything that is traced here, as far as `filter` lets it through; and every panic. Called once in a process.
    pub fn install(&self, filter: EnvFilter) {
        let throttle = Arc::new(Throttle::default());
        self.set_periodic_work({
            let throttle = Arc::clone(&throttle);
            move || throttle.say_what_was_held_back()
        });
        let lines = fmt::layer().with_writer(self.clone()).with_ansi(io::stderr().is_terminal());
        tracing_subscriber::registry().with(filter).with(throttle::Layer(throttle)).with(lines).init();
        panics::report_to(self);
    }
}
