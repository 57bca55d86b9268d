//! One line for each request that was decided: who asked for what, on which resource, and how it ended.
//!
//! The lines go to the log under the target `quorate::audit` at level `debug`, so they cost nothing unless someone asks for
//! them (`QUORATE_LOG=quorate::audit=debug`). They hold names and numbers; no plaintext, ciphertext, token or invitation.

use std::fmt;

use quorate_client::wire::WireError;
use tracing::{Level, debug, enabled};

use crate::peers::caller::Caller;

const TARGET: &str = "quorate::audit";

/// What the line will say of a request; `None` if nobody asked for audit lines.
pub(super) struct Line(Option<String>);

impl Line {
    /// Notes the request before it is carried out.
    pub(super) fn of(request: &dyn fmt::Display) -> Self {
        Self(enabled!(target: TARGET, Level::DEBUG).then(|| request.to_string()))
    }

    /// Writes the line, now that the request has ended.
    pub(super) fn write<T>(self, caller: &Caller, ended: &Result<T, WireError>) {
        let Some(request) = self.0 else { return };
        let outcome = ended.as_ref().map_or_else(|error| error.code.to_string(), |_| "ok".to_owned());
        debug!(target: TARGET, %caller, %request, %outcome, "asked");
    }
}
