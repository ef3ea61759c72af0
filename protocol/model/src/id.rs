//! Names and ids as validated newtypes: a value of one of these types is known to be well formed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use smol_str::{SmolStr, format_smolstr};

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} {problem}")]
pub struct InvalidName {
    what: &'static str,
    text: String,
    problem: &'static str,
}

/// The longest name: a DNS label, because names become host names.
pub const MAX_NAME: usize = 63;

fn check(what: &'static str, text: &str, extra: &[u8]) -> Result<(), InvalidName> {
    let fail = |problem| Err(InvalidName { what, text: text.to_owned(), problem });
    if text.is_empty() {
        return fail("is empty");
    }
    if text.len() > MAX_NAME {
        return fail("is longer than 63 characters");
    }
    if !text.as_bytes()[0].is_ascii_lowercase() {
        return fail("does not start with a lower-case letter");
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || extra.contains(&b)) {
        return fail("has a character other than lower-case letters, digits and '-'");
    }
    if text.ends_with('-') {
        return fail("ends with '-'");
    }
    Ok(())
}

// Short names lie where they are used and are copied without allocating: what decides about 10,000 nodes copies many.
macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $extra:expr) => {
        $(#[$doc])*
        ///
        /// Names are ordered naturally: `w2` is before `w10`.
        #[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(SmolStr);

        impl Ord for $type {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                crate::natural::compare(&self.0, &other.0)
            }
        }
        impl PartialOrd for $type {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl $type {
            /// Parses a name: lower-case letters, digits and '-', at most 63 characters, starting with a letter.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
                let text = text.as_ref();
                check($what, text, $extra)?;
                Ok(Self(text.into()))
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
        impl FromStr for $type {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }
        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.into()
            }
        }
    };
}

name!(/** The name of a cluster: unique for its user. */ ClusterName, "cluster name", b"");
name!(/** The name of a workspace: unique for its user. */ WorkspaceName, "workspace name", b"");
name!(/** A node of one cluster. A replacement keeps the id and takes the next [`Generation`]. */ NodeId, "node id", b"");
name!(/** A named shape of worker. */ NodeTypeName, "node type", b"");
name!(/** A runtime: what nodes run. */ RuntimeName, "runtime name", b"");
name!(/** One long-running process of a runtime on a node. */ ServiceName, "service name", b"");
name!(/** A person with access to a cluster. */ AdministratorName, "administrator's name", b"._@+");
name!(/** A kind of provider: where machines come from. */ ProviderKind, "provider", b"");
name!(/** The provider's name for a machine, unique in the cluster for ever. */ InstanceId, "instance id", b"._");
name!(/** A job of a cluster. */ JobName, "job name", b"._");

/// The number of a job, from 1; unique in the cluster's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl NodeId {
    /// The id of the cluster's head node.
    pub fn head() -> Self {
        Self("head".into())
    }
    pub fn is_head(&self) -> bool {
        self.0 == "head"
    }
    /// The id of the `ordinal`th worker of a type: `w1` for the type `default`, `gpu-1` for the type `gpu`.
    pub fn worker(node_type: &NodeTypeName, ordinal: u32) -> Self {
        if node_type.as_str() == NodeTypeName::DEFAULT {
            Self(format_smolstr!("w{ordinal}"))
        } else {
            Self(format_smolstr!("{node_type}-{ordinal}"))
        }
    }
}

impl RuntimeName {
    /// Of the services that belong to a node itself, such as the head on its node. No runtime may be called so.
    pub const OWN: &'static str = "cloudtik";
    pub fn is_own(&self) -> bool {
        self.0 == Self::OWN
    }
}

impl NodeTypeName {
    pub const DEFAULT: &'static str = "default";
    pub const HEAD: &'static str = "head";
    pub fn head() -> Self {
        Self(Self::HEAD.into())
    }
}

/// How often a node was launched under its id, from 1. What carries an older generation is not the node any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u32);

impl Generation {
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of the head's leadership. Every message to an agent carries it; a lower one than seen is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// A service of a runtime, written `runtime/service`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceKey {
    pub runtime: RuntimeName,
    pub service: ServiceName,
}

impl ServiceKey {
    pub fn new(runtime: RuntimeName, service: ServiceName) -> Self {
        Self { runtime, service }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.runtime, self.service))
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for ServiceKey {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (runtime, service) = text.split_once('/').ok_or(InvalidName {
            what: "service",
            text: text.to_owned(),
            problem: "is not of the form runtime/service",
        })?;
        Ok(Self { runtime: runtime.parse()?, service: service.parse()? })
    }
}

impl TryFrom<String> for ServiceKey {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<ServiceKey> for String {
    fn from(key: ServiceKey) -> String {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "demo", "w1", "my-cluster-2"] {
            assert_eq!(ClusterName::new(good).map(String::from), Ok(good.to_owned()));
        }
        for bad in ["", "Demo", "1st", "a_b", "a/b", "../x", "a-", "ä", &"x".repeat(64)] {
            assert!(ClusterName::new(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn a_bad_name_is_refused_by_serde_too() {
        assert!(serde_json::from_str::<NodeId>("\"../../etc\"").is_err());
        assert!(serde_json::from_str::<ServiceKey>("\"spark\"").is_err());
        assert_eq!(serde_json::from_str::<ServiceKey>("\"spark/master\"").map(|k| k.to_string()).ok().as_deref(), Some("spark/master"));
    }

    #[test]
    fn workers_are_named_after_their_type() {
        let of = |t: &str| NodeId::worker(&NodeTypeName::new(t).expect("valid"), 3).to_string();
        assert_eq!((of("default"), of("gpu")), ("w3".to_owned(), "gpu-3".to_owned()));
    }
}
