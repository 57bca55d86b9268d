//! One module per promise of the README.
