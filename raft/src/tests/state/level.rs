//! The feature level: when it rises, and that it never falls.

use crate::live::command::{Change, Command, Outcome};
use crate::live::level::next_level;
use crate::live::refusal::Refusal;
use crate::live::state::apply;
use crate::tests::fixture::founded;

/// Mutated: if members whose level is not known are left out, an old member that is away stops when it is back.
#[test]
fn the_level_rises_when_every_member_knows_more() {
    let state = founded(3, 2);
    assert_eq!(state.level(), 1);
    assert_eq!(next_level(&state, [Some(3), Some(2), Some(3)]), Some(2));
    assert_eq!(next_level(&state, [Some(3), Some(1), Some(3)]), None);
    assert_eq!(next_level(&state, [Some(3), None, Some(3)]), None);
    assert_eq!(next_level(&state, []), None);
}

#[test]
fn a_level_never_falls() {
    let mut state = founded(3, 2);
    let raise = |level| Command::new(1, Change::RaiseLevel { level });
    assert_eq!(apply(&mut state, &raise(3)).outcome, Ok(Outcome::LevelRaised { level: 3 }));
    assert_eq!(state.level(), 3);
    assert_eq!(apply(&mut state, &raise(3)).outcome, Ok(Outcome::LevelRaised { level: 3 }), "a repetition");
    assert_eq!(apply(&mut state, &raise(2)).outcome, Err(Refusal::LevelFalls { level: 3 }));
}
