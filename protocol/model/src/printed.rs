//! Documents as `-o json` prints them: every [`Timestamp`] as RFC 3339 in UTC, the words beside the codes of reasons and events,
//! all else as it is stored and sent.

use std::fmt::Display;

use serde::ser::{
    Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple, SerializeTupleStruct,
    SerializeTupleVariant, Serializer,
};

use crate::Timestamp;
use crate::words::{self, Beside};

/// A document to be printed.
#[derive(Debug, Clone, Copy)]
pub struct Printed<'a, T: ?Sized>(pub &'a T);

impl<T: Serialize + ?Sized> Serialize for Printed<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(Printing(serializer, Beside::new()))
    }
}

/// Hands everything on, turns moments into text, and ends a struct or a map with what is printed beside its fields.
struct Printing<S>(S, Beside);

macro_rules! hand_on {
    ($($method:ident: $type:ty),* $(,)?) => {
        $(fn $method(self, value: $type) -> Result<S::Ok, S::Error> {
            self.0.$method(value)
        })*
    };
}

impl<S: Serializer> Serializer for Printing<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Printing<S::SerializeSeq>;
    type SerializeTuple = Printing<S::SerializeTuple>;
    type SerializeTupleStruct = Printing<S::SerializeTupleStruct>;
    type SerializeTupleVariant = Printing<S::SerializeTupleVariant>;
    type SerializeMap = Printing<S::SerializeMap>;
    type SerializeStruct = Printing<S::SerializeStruct>;
    type SerializeStructVariant = Printing<S::SerializeStructVariant>;

    hand_on! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64, serialize_i128: i128,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_u128: u128, serialize_f32: f32,
        serialize_f64: f64, serialize_char: char, serialize_str: &str, serialize_bytes: &[u8], serialize_unit_struct: &'static str,
    }

    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        self.0.serialize_none()
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.serialize_some(&Printed(value))
    }
    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.0.serialize_unit()
    }
    fn serialize_unit_variant(self, name: &'static str, index: u32, variant: &'static str) -> Result<S::Ok, S::Error> {
        self.0.serialize_unit_variant(name, index, variant)
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result<S::Ok, S::Error> {
        if name != Timestamp::NAME {
            let beside = words::beside(name, value).map_err(serde::ser::Error::custom)?;
            if beside.is_empty() {
                return self.0.serialize_newtype_struct(name, &Printed(value));
            }
            return value.serialize(Printing(self.0, beside));
        }
        let milliseconds = serde_json::to_value(value).map_err(serde::ser::Error::custom)?;
        let at: Timestamp = serde_json::from_value(milliseconds).map_err(serde::ser::Error::custom)?;
        self.0.serialize_str(&at.rfc3339())
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_variant(name, index, variant, &Printed(value))
    }
    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.0.serialize_seq(len).map(|inner| Printing(inner, Beside::new()))
    }
    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.0.serialize_tuple(len).map(|inner| Printing(inner, Beside::new()))
    }
    fn serialize_tuple_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.0.serialize_tuple_struct(name, len).map(|inner| Printing(inner, Beside::new()))
    }
    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        self.0.serialize_tuple_variant(name, index, variant, len).map(|inner| Printing(inner, Beside::new()))
    }
    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        let len = len.map(|len| len + self.1.len());
        self.0.serialize_map(len).map(|inner| Printing(inner, self.1))
    }
    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeStruct, S::Error> {
        self.0.serialize_struct(name, len + self.1.len()).map(|inner| Printing(inner, self.1))
    }
    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        self.0.serialize_struct_variant(name, index, variant, len).map(|inner| Printing(inner, Beside::new()))
    }
    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.collect_str(value)
    }
    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

macro_rules! elements {
    ($($trait:ident: $method:ident),*) => {
        $(impl<C: $trait> $trait for Printing<C> {
            type Ok = C::Ok;
            type Error = C::Error;
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
                self.0.$method(&Printed(value))
            }
            fn end(self) -> Result<C::Ok, C::Error> {
                self.0.end()
            }
        })*
    };
}

elements!(
    SerializeSeq: serialize_element, SerializeTuple: serialize_element, SerializeTupleStruct: serialize_field,
    SerializeTupleVariant: serialize_field
);

macro_rules! fields {
    ($($trait:ident),*) => {
        $(impl<C: $trait> $trait for Printing<C> {
            type Ok = C::Ok;
            type Error = C::Error;
            fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), C::Error> {
                self.0.serialize_field(key, &Printed(value))
            }
            fn skip_field(&mut self, key: &'static str) -> Result<(), C::Error> {
                self.0.skip_field(key)
            }
            fn end(mut self) -> Result<C::Ok, C::Error> {
                for (key, value) in &self.1 {
                    self.0.serialize_field(key, value)?;
                }
                self.0.end()
            }
        })*
    };
}

fields!(SerializeStruct, SerializeStructVariant);

impl<C: SerializeMap> SerializeMap for Printing<C> {
    type Ok = C::Ok;
    type Error = C::Error;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), C::Error> {
        self.0.serialize_key(key)
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        self.0.serialize_value(&Printed(value))
    }
    fn end(mut self) -> Result<C::Ok, C::Error> {
        for (key, value) in &self.1 {
            self.0.serialize_entry(key, value)?;
        }
        self.0.end()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(serde::Serialize)]
    enum Kind {
        Nothing,
        One(Timestamp),
        Two(u8, Timestamp),
        Named { at: Timestamp },
    }

    #[derive(serde::Serialize)]
    struct Inner {
        until: Option<Timestamp>,
        none: Option<Timestamp>,
    }

    #[derive(serde::Serialize)]
    struct Document {
        z_first: Timestamp,
        number: u64,
        names: BTreeMap<&'static str, Timestamp>,
        pairs: Vec<(f64, Timestamp)>,
        kinds: [Kind; 4],
        #[serde(flatten)]
        inner: Inner,
    }

    #[test]
    fn moments_are_printed_in_utc_wherever_they_are_and_nothing_else_changes() {
        let at = Timestamp(1_709_210_096_789);
        let document = Document {
            z_first: at,
            number: at.0,
            names: BTreeMap::from([("a", at)]),
            pairs: vec![(0.5, at)],
            kinds: [Kind::Nothing, Kind::One(at), Kind::Two(1, at), Kind::Named { at }],
            inner: Inner { until: Some(at), none: None },
        };
        let printed = serde_json::to_string(&Printed(&document)).expect("JSON");
        let expected = r#"{"z_first":AT,"number":1709210096789,"names":{"a":AT},"pairs":[[0.5,AT]],"kinds":["Nothing",{"One":AT},{"Two":[1,AT]},{"Named":{"at":AT}}],"until":AT,"none":null}"#;
        assert_eq!(printed, expected.replace("AT", "\"2024-02-29T12:34:56.789Z\""));
        assert!(serde_json::to_string(&document).expect("JSON").contains("\"until\":1709210096789"), "what is stored and sent stays");
    }
}
