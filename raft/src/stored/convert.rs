//! Conversions between the structs of the program and their stored forms.
//!
//! They name every field and every variant of both sides, so the compiler names one that was forgotten. Where the two sides
//! differ, the conversion is written by hand.

/// Both conversions between a live struct and its stored form, where the fields have the same names: first those that are
/// taken as they are, then those that have a stored form of their own.
macro_rules! same_fields {
    ($live:ident, $stored:ident { $($plain:ident),* $(; $($nested:ident),*)? }) => {
        impl From<$live> for $stored {
            fn from($live { $($plain,)* $($($nested,)*)? }: $live) -> Self {
                Self { $($plain,)* $($($nested: $nested.into(),)*)? }
            }
        }

        impl From<$stored> for $live {
            fn from($stored { $($plain,)* $($($nested,)*)? }: $stored) -> Self {
                Self { $($plain,)* $($($nested: $nested.into(),)*)? }
            }
        }
    };
}

/// Both conversions between an enum and its stored form, where the variants have the same names.
macro_rules! same_variants {
    ($live:ident, $stored:ident { $($variant:ident $({ $($field:ident),* })? $(($value:ident))?),* }) => {
        impl From<$live> for $stored {
            fn from(live: $live) -> Self {
                match live {
                    $($live::$variant $({ $($field),* })? $(($value))? =>
                        Self::$variant $({ $($field),* })? $(($value.into()))?,)*
                }
            }
        }

        impl From<$stored> for $live {
            fn from(stored: $stored) -> Self {
                match stored {
                    $($stored::$variant $({ $($field),* })? $(($value))? =>
                        Self::$variant $({ $($field),* })? $(($value.into()))?,)*
                }
            }
        }
    };
}

/// Converts each item of a list.
pub(super) fn all_into<A: Into<B>, B>(list: Vec<A>) -> Vec<B> {
    list.into_iter().map(Into::into).collect()
}

pub(super) use {same_fields, same_variants};
