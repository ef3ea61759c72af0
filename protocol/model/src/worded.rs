//! Types whose words are printed beside their fields: they are serialized under a name by which `words` knows them.

/// Serializes types under their name, so that whoever prints them can add the words.
macro_rules! worded {
    ($($type:ident),*) => {
        $(
            impl serde::Serialize for $type {
                fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    struct Plain<'a>(&'a $type);
                    impl serde::Serialize for Plain<'_> {
                        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                            $type::serialize(self.0, serializer)
                        }
                    }
                    serializer.serialize_newtype_struct(concat!("cloudtik::", stringify!($type)), &Plain(self))
                }
            }
            impl<'de> serde::Deserialize<'de> for $type {
                fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    $type::deserialize(deserializer)
                }
            }
        )*
    };
}
pub(crate) use worded;
