//! The names that serde knows of a type, asked of the type itself: a format can be held against a document, wherever its
//! source lies.

use std::collections::BTreeSet;

use quorate_client::wire;
use serde::Serialize;
use serde::de::value::Error;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;

/// The name of a type, and its variants or fields in the order in which they are declared: the variants are numbered in that
/// order, and the fields are written in it. What serde skips is left out.
///
/// # Panics
/// If `T` is neither an enum nor a struct with named fields whose `Deserialize` is derived.
pub(crate) fn names<T: DeserializeOwned>() -> (&'static str, &'static [&'static str]) {
    let mut asked = None;
    // Deserializing fails, but it first asks for the names.
    let refused = T::deserialize(Asked(&mut asked));
    assert!(refused.is_err(), "nothing was deserialized");
    asked.unwrap_or_else(|| panic!("{} is neither an enum nor a struct", std::any::type_name::<T>()))
}

/// Returns `values`. Each variant of `T` must be among them, so a test that sends them all fails when a variant is added.
///
/// # Panics
/// If a variant is missing, with its name.
pub(crate) fn of_each_variant<T: Serialize + DeserializeOwned>(values: Vec<T>) -> Vec<T> {
    let (name, variants) = names::<T>();
    // Encoded, an enum begins with the number of its variant.
    let present: BTreeSet<_> = values.iter().map(|value| usize::from(wire::encode(value)[0])).collect();
    let missing = variants.iter().enumerate().filter(|(number, _)| !present.contains(number));
    let missing: Vec<_> = missing.map(|(_, variant)| *variant).collect();
    assert!(missing.is_empty(), "the list lacks these variants of {name}: {}", missing.join(", "));
    values
}

/// Writes down what a derived `Deserialize` asks for, and gives nothing.
struct Asked<'a>(&'a mut Option<(&'static str, &'static [&'static str])>);

impl<'de> Deserializer<'de> for Asked<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("nothing is there"))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = Some((name, variants));
        self.deserialize_any(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = Some((name, fields));
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map identifier ignored_any
    }
}
