//! A serde deserializer around another one that bends names and nulls the way Go does.
//!
//! Structs tell their field names to `deserialize_struct`; keys are mapped to those. Every typed
//! value is asked for as an option first, so that null can be answered with an empty value. What
//! asks for "anything" (`serde_json::Value`, raw JSON) is left alone.

use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, IntoDeserializer as _, MapAccess, SeqAccess,
    Visitor, value::MapDeserializer, value::SeqDeserializer,
};

/// The wrapping deserializer.
pub(super) struct GoLike<D>(pub(super) D);

/// What null stands for where a value of this kind is expected.
#[derive(Clone, Copy)]
enum Kind {
    Bool,
    Signed,
    Unsigned,
    Float,
    Text,
    Seq,
    Map,
    Struct(&'static [&'static str]),
}

/// Asks for `kind` with null allowed.
fn nullable<'de, D: Deserializer<'de>, V: Visitor<'de>>(
    inner: D,
    kind: Kind,
    visitor: V,
) -> Result<V::Value, D::Error> {
    inner.deserialize_option(Nullable { kind, visitor })
}

struct Nullable<V> {
    kind: Kind,
    visitor: V,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Nullable<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        let no_items = std::iter::empty::<()>();
        let no_entries = std::iter::empty::<((), ())>();
        match self.kind {
            Kind::Bool => self.visitor.visit_bool(false),
            Kind::Signed => self.visitor.visit_i64(0),
            Kind::Unsigned => self.visitor.visit_u64(0),
            Kind::Float => self.visitor.visit_f64(0.0),
            Kind::Text => self.visitor.visit_str(""),
            Kind::Seq => self.visitor.visit_seq(SeqDeserializer::new(no_items)),
            Kind::Map | Kind::Struct(_) => self.visitor.visit_map(MapDeserializer::new(no_entries)),
        }
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let Self { kind, visitor } = self;
        match kind {
            Kind::Bool => inner.deserialize_bool(visitor),
            Kind::Signed => inner.deserialize_i64(visitor),
            Kind::Unsigned => inner.deserialize_u64(visitor),
            Kind::Float => inner.deserialize_f64(visitor),
            Kind::Text => inner.deserialize_str(visitor),
            Kind::Seq => inner.deserialize_seq(Items(visitor)),
            Kind::Map => inner.deserialize_map(Entries {
                visitor,
                fields: None,
            }),
            // As a map: serde_json would also take an array for a struct.
            Kind::Struct(fields) => inner.deserialize_map(Entries {
                visitor,
                fields: Some(fields),
            }),
        }
    }
}

macro_rules! nullable {
    ($($method:ident => $kind:ident),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            nullable(self.0, Kind::$kind, visitor)
        }
    )*};
}

macro_rules! plain {
    ($($method:ident),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.0.$method(visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for GoLike<D> {
    type Error = D::Error;

    nullable! {
        deserialize_bool => Bool,
        deserialize_i8 => Signed,
        deserialize_i16 => Signed,
        deserialize_i32 => Signed,
        deserialize_i64 => Signed,
        deserialize_u8 => Unsigned,
        deserialize_u16 => Unsigned,
        deserialize_u32 => Unsigned,
        deserialize_u64 => Unsigned,
        deserialize_f32 => Float,
        deserialize_f64 => Float,
        deserialize_str => Text,
        deserialize_string => Text,
        deserialize_seq => Seq,
        deserialize_map => Map,
    }

    plain! {
        deserialize_any, deserialize_ignored_any, deserialize_i128, deserialize_u128,
        deserialize_char, deserialize_bytes, deserialize_byte_buf, deserialize_unit,
        deserialize_identifier,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_option(Wrapped(visitor))
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        // serde_json's raw values are newtypes with a reserved name: not ours to bend.
        if name.starts_with("$serde_json::") {
            self.0.deserialize_newtype_struct(name, visitor)
        } else {
            self.0.deserialize_newtype_struct(name, Wrapped(visitor))
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_tuple(len, Items(visitor))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_tuple_struct(name, len, Items(visitor))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        nullable(self.0, Kind::Struct(fields), visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_enum(name, variants, Variants(visitor))
    }
}

/// Hands on options and newtypes with their content wrapped.
struct Wrapped<V>(V);

impl<'de, V: Visitor<'de>> Visitor<'de> for Wrapped<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(GoLike(inner))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(GoLike(inner))
    }
}

/// Hands on a sequence with its items wrapped.
struct Items<T>(T);

impl<'de, V: Visitor<'de>> Visitor<'de> for Items<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Items(items))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Items<A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, A::Error> {
        self.0.next_element_seed(Seed(seed))
    }
}

/// Hands on a map with its values wrapped; the keys of structs become the declared field names.
struct Entries<T> {
    visitor: T,
    fields: Option<&'static [&'static str]>,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Entries<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Entries {
            visitor: entries,
            fields: self.fields,
        })
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Entries<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        match self.fields {
            // Keys are never null, and integer keys need serde_json's own deserializer.
            None => self.visitor.next_key_seed(seed),
            Some(fields) => self.visitor.next_key_seed(FieldName { seed, fields }),
        }
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.visitor.next_value_seed(Seed(seed))
    }
}

/// Hands on an enum with its content wrapped.
struct Variants<T>(T);

impl<'de, V: Visitor<'de>> Visitor<'de> for Variants<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(access)
    }
}

/// Wraps the deserializer that a seed gets.
struct Seed<T>(T);

impl<'de, T: DeserializeSeed<'de>> DeserializeSeed<'de> for Seed<T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<T::Value, D::Error> {
        self.0.deserialize(GoLike(inner))
    }
}

/// Reads a key and hands on the declared name it matches.
struct FieldName<K> {
    seed: K,
    fields: &'static [&'static str],
}

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for FieldName<K> {
    type Value = K::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<K::Value, D::Error> {
        inner.deserialize_str(self)
    }
}

impl<'de, K: DeserializeSeed<'de>> Visitor<'de> for FieldName<K> {
    type Value = K::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<K::Value, E> {
        // The exact name first: two fields may differ in case only (`Timestamp`, `timestamp`).
        let declared = if self.fields.contains(&name) {
            name
        } else {
            let odd = self
                .fields
                .iter()
                .find(|field| field.eq_ignore_ascii_case(name));
            odd.copied().unwrap_or(name)
        };
        self.seed.deserialize(declared.into_deserializer())
    }
}
