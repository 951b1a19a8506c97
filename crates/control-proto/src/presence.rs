//! Fields that mean something different when absent, null, or present.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, marker::PhantomData};

/// A JSON field in three states.
///
/// Fields of this type carry `#[serde(default, skip_serializing_if = "Presence::is_absent")]`
/// (the container's `default` will do), or absent would be written as null.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Presence<T> {
    /// The key is not there: nothing changes.
    #[default]
    Absent,
    /// The key is there with `null`.
    Null,
    /// The key is there with a value, an empty one included.
    Value(T),
}

impl<T> Presence<T> {
    /// Whether the key is not there.
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// Borrows the value, if there is one.
    pub const fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }

    /// Takes the value, if there is one.
    pub fn into_value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }
}

impl<T> From<T> for Presence<T> {
    fn from(value: T) -> Self {
        Self::Value(value)
    }
}

impl<T: Serialize> Serialize for Presence<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent | Self::Null => serializer.serialize_none(),
            Self::Value(value) => serializer.serialize_some(value),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Presence<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = Presence<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("null or a value")
            }

            fn visit_none<E>(self) -> Result<Self::Value, E> {
                Ok(Presence::Null)
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Presence::Null)
            }

            fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
                T::deserialize(inner).map(Presence::Value)
            }
        }

        deserializer.deserialize_option(Visitor(PhantomData))
    }
}
