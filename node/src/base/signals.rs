//! Signals: which of them stop the daemon, which do nothing, and which end it at once.
//!
//! By default most signals end a process. Tools send some of them to any daemon: log rotation sends SIGHUP, and scripts that know
//! another key service send SIGUSR1 or SIGUSR2. None of these may take a node away from its cluster. A signal that does nothing
//! here is named in the log, so that its sender learns what to do instead.
//!
//! SIGPIPE is ignored by Rust before `main`. These stay deadly, because the process cannot or should not go on after them:
//! SIGKILL; SIGABRT, by which the process ends itself and a watchdog ends it; SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP and SIGSYS,
//! which say that its memory or its code is wrong; SIGXCPU, a limit that the operator has set.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

/// Stop the daemon in order.
const STOP: [(Number, &str); 3] = [(Number::TERM, "SIGTERM"), (Number::INT, "SIGINT"), (Number::QUIT, "SIGQUIT")];

/// Do nothing, with what their sender may do instead.
const IGNORED: [(Number, &str, &str); 10] = [
    (
        Number::HUP,
        "SIGHUP",
        "the log goes to standard error, so no file is to be opened again; a restart reads the configuration",
    ),
    (Number::USR1, "SIGUSR1", "`quorate node status` shows the state of this node"),
    (Number::USR2, "SIGUSR2", "`quorate node status` shows the state of this node"),
    (Number::ALARM, "SIGALRM", NO_TIMER),
    (Number::VTALARM, "SIGVTALRM", NO_TIMER),
    (Number::PROF, "SIGPROF", NO_TIMER),
    (Number::IO, "SIGIO", "no file of this process sends it"),
    (Number::POWER, "SIGPWR", "to stop this node, send SIGTERM"),
    (Number::XFSZ, "SIGXFSZ", "the write that exceeds the limit on the size of a file fails"),
    (Number::STKFLT, "SIGSTKFLT", "Linux does not send it"),
];
const NO_TIMER: &str = "this process has set no such timer";

/// Real-time signals, whose numbers no program has agreed on with this one. The C library keeps 32 and 33 for itself.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// The signals that this process handles, from when this is made until the process ends.
pub struct Signals {
    stop: Vec<(&'static str, Signal)>,
    ignored: Vec<Ignored>,
}

struct Ignored {
    name: String,
    instead: &'static str,
    signal: Signal,
}

impl Signals {
    /// Handles them from now on.
    ///
    /// # Errors
    /// If the system refuses. The process must not run then: a signal that does nothing by promise would end it.
    pub fn handle() -> io::Result<Self> {
        let watch = |number: i32| signal(SignalKind::from_raw(number));
        let stop = STOP.map(|(number, name)| Ok((name, watch(number.as_raw())?)));
        let named = IGNORED.map(|(number, name, instead)| (number.as_raw(), name.to_owned(), instead));
        let real_time =
            REAL_TIME.map(|number| (number, format!("signal {number}"), "no program has agreed on it with this one"));
        let ignored = named
            .into_iter()
            .chain(real_time)
            .map(|(number, name, instead)| Ok(Ignored { name, instead, signal: watch(number)? }));
        Ok(Self { stop: stop.into_iter().collect::<io::Result<_>>()?, ignored: ignored.collect::<io::Result<_>>()? })
    }

    /// Waits for a signal that stops the daemon, and returns its name. Meanwhile each signal that does nothing is named in the log.
    pub async fn stop(&mut self) -> &'static str {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<&'static str> {
        for Ignored { name, instead, signal } in &mut self.ignored {
            while let Poll::Ready(Some(())) = signal.poll_recv(context) {
                info!("{name} does nothing: {instead}");
            }
        }
        let mut sent = None;
        for (name, signal) in &mut self.stop {
            if signal.poll_recv(context).is_ready() {
                sent = Some(*name);
            }
        }
        sent.map_or(Poll::Pending, Poll::Ready)
    }
}
