//! The demo: what Quorate promises, shown on real processes in a minute or two.
//!
//! Each step says what it does, does it, checks the result, and says how long it took. A step that does not end as told ends
//! the story, so the demo is also a test.

mod steps;

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::base::error::Error;

/// Tells the story on `out`. `directory` keeps the cluster's files afterwards; without one they are removed.
///
/// # Errors
/// The first step that does not end as told.
pub fn tell(directory: Option<PathBuf>, out: &mut dyn Write) -> Result<(), Error> {
    let mut narrator = Narrator { out, steps: 0, begun: Instant::now() };
    let told = steps::all(directory, &mut narrator);
    let (steps, took) = (narrator.steps, seconds(narrator.begun.elapsed()));
    match &told {
        Ok(()) => narrator.line(&format!("\nAll {steps} steps ended as described, in {took}."))?,
        Err(_) => narrator.line(&format!("\nStep {steps} did not end as told."))?,
    }
    told
}

/// Writes each step, what came of it and how long it took.
struct Narrator<'a> {
    out: &'a mut dyn Write,
    steps: usize,
    begun: Instant,
}

impl Narrator<'_> {
    /// Tells one step: its title, then what `act` says has come of it, line by line.
    fn step<T>(&mut self, title: &str, act: impl FnOnce(&mut Vec<String>) -> Result<T, Error>) -> Result<T, Error> {
        self.steps += 1;
        self.line(&format!("\n{}. {title}", self.steps))?;
        let (begun, mut seen) = (Instant::now(), Vec::new());
        let result = act(&mut seen);
        for line in seen {
            self.line(&format!("   {line}"))?;
        }
        let verdict = if result.is_ok() { "done" } else { "FAILED" };
        self.line(&format!("   {verdict}, {}", seconds(begun.elapsed())))?;
        result
    }

    fn line(&mut self, text: &str) -> Result<(), Error> {
        writeln!(self.out, "{text}").and_then(|()| self.out.flush()).map_err(Error::Output)
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
