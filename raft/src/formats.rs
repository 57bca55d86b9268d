//! The formats that are private to this crate, for the test that holds docs/FORMATS.md against the types themselves.

use serde::de::DeserializeOwned;

use crate::consensus::messages::{Ask, Tell};
use crate::snapshot::Chunk;
use crate::stored::format::{MetaV1, PayloadV1};
use crate::stored::v1::{EpochPhaseV1, RowV1};

/// What is done with each type.
pub trait Private {
    /// Is called once for each type.
    fn visit<T: DeserializeOwned>(&mut self);
}

/// Shows every enum that is written to a disk or sent to another replica, and that this crate keeps to itself.
pub fn visit_private(visitor: &mut impl Private) {
    visitor.visit::<Ask>();
    visitor.visit::<Tell>();
    visitor.visit::<PayloadV1>();
    visitor.visit::<MetaV1>();
    visitor.visit::<Chunk>();
    visitor.visit::<RowV1>();
    visitor.visit::<EpochPhaseV1>();
}
