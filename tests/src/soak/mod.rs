//! Random tests over real processes. `make test` runs them for a moment, `make soak` for hours.

mod churn;
mod power_cuts;
mod restarts;
