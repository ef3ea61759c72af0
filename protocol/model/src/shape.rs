//! Shapes of machines, as a provider's catalogue names them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::{MoneyPerHour, Resources};

/// The name of a shape, such as `m5.large` or `Standard_D4s_v5`: at most 63 letters, digits, `.`, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShapeName(SmolStr);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a shape: at most 63 letters, digits, '.', '_' and '-'")]
pub struct InvalidShapeName(String);

/// The longest name.
const MAX_LENGTH: usize = 63;

impl ShapeName {
    pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidShapeName> {
        let text = text.as_ref();
        let is_valid = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if text.is_empty() || text.len() > MAX_LENGTH || !text.bytes().all(is_valid) {
            return Err(InvalidShapeName(text.to_owned()));
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShapeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ShapeName {
    type Err = InvalidShapeName;
    fn from_str(text: &str) -> Result<Self, InvalidShapeName> {
        Self::new(text)
    }
}

impl TryFrom<String> for ShapeName {
    type Error = InvalidShapeName;
    fn try_from(text: String) -> Result<Self, InvalidShapeName> {
        Self::new(text)
    }
}

impl From<ShapeName> for String {
    fn from(name: ShapeName) -> String {
        name.0.into()
    }
}

/// What a machine of a shape has, and what it costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub resources: Resources,
    /// On demand; unknown where the provider does not tell.
    pub price: Option<MoneyPerHour>,
}
