//! Who may do what with a cluster: roles, and the documents of `cloudtik access -o json`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Actor, AdministratorName, ClusterName, Timestamp, WorkspaceName};

/// What an administrator may do. Each role includes the ones below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Reads: status, events, explanations, logs.
    Viewer,
    /// Uses: jobs, commands on nodes, scaling, draining, holding.
    Operator,
    /// Changes: descriptions, the end of the cluster, access.
    Admin,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a text is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role; roles are viewer, operator and admin")]
pub struct InvalidRole(String);

impl FromStr for Role {
    type Err = InvalidRole;
    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| InvalidRole(text.to_owned()))
    }
}

/// A grant of access, as people see it: `cloudtik access list -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub name: AdministratorName,
    pub role: Role,
    pub state: GrantState,
    /// Unique in the cluster; the certificate carries it.
    pub number: u64,
    pub granted_at: Timestamp,
    pub granted_by: Actor,
    /// When the access ends.
    pub expires: Timestamp,
    /// Until when an offer can be accepted.
    pub accept_by: Option<Timestamp>,
    pub accepted_at: Option<Timestamp>,
    /// The address that accepted it.
    pub accepted_from: Option<String>,
    pub revoked_at: Option<Timestamp>,
    pub revoked_by: Option<Actor>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrantState {
    /// Nobody has accepted it yet.
    Offered,
    /// It was not accepted in time.
    Lapsed,
    /// There is a certificate for it, which is good.
    Active,
    Expired,
    Revoked,
}

impl GrantState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Lapsed => "lapsed",
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// `cloudtik access grant -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    pub cluster: ClusterName,
    pub name: AdministratorName,
    pub role: Role,
    pub expires: Timestamp,
    pub accept_by: Timestamp,
    /// What the other person hands to `cloudtik access accept`.
    pub invitation: String,
}

/// What the head says to whoever accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    pub cluster: ClusterName,
    pub workspace: WorkspaceName,
    pub name: AdministratorName,
    pub role: Role,
    /// When the certificate ends, and the access with it.
    pub expires: Timestamp,
}

/// `cloudtik access revoke -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    pub name: AdministratorName,
    pub role: Role,
    /// What the grant was before: `offered` or `active`.
    pub was: GrantState,
}

/// What an administrator is given to reach a cluster for the first time, on one line:
/// `cloudtik://CLUSTER@ADDRESS/CA/TOKEN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    pub cluster: ClusterName,
    /// Of the head: host and port.
    pub address: String,
    /// SHA-256 of the cluster's root certificate in DER, in hexadecimal.
    pub ca: String,
    /// Good once.
    pub token: String,
}

/// Hexadecimal characters of a digest or a token of 32 bytes.
const HEX: usize = 64;

/// A text is no invitation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an invitation such as cloudtik://CLUSTER@HOST:PORT/CA/TOKEN")]
pub struct InvalidInvitation;

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cloudtik://{}@{}/{}/{}", self.cluster, self.address, self.ca, self.token)
    }
}

impl FromStr for Invitation {
    type Err = InvalidInvitation;
    fn from_str(text: &str) -> Result<Self, InvalidInvitation> {
        let rest = text.trim().strip_prefix("cloudtik://").ok_or(InvalidInvitation)?;
        let (cluster, rest) = rest.split_once('@').ok_or(InvalidInvitation)?;
        let [address, ca, token] = rest.split('/').collect::<Vec<_>>()[..] else { return Err(InvalidInvitation) };
        let is_hex = |text: &str| text.len() == HEX && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let is_address = |text: &str| {
            let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
            port.is_some() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]%".contains(&b))
        };
        if !(is_hex(ca) && is_hex(token) && is_address(address)) {
            return Err(InvalidInvitation);
        }
        let cluster = cluster.parse().map_err(|_| InvalidInvitation)?;
        Ok(Self { cluster, address: address.to_owned(), ca: ca.to_owned(), token: token.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_includes_the_ones_below() {
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
        for role in Role::ALL {
            assert_eq!(role.name().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().is_err());
    }

    #[test]
    fn an_invitation_is_read_back_and_nothing_else_is_one() {
        for address in ["127.3.4.1:7070", "head.example.org:7070", "[2001:db8::1]:7070"] {
            let invitation = Invitation {
                cluster: ClusterName::new("demo").expect("valid"),
                address: address.to_owned(),
                ca: "0123456789abcdef".repeat(4),
                token: "f".repeat(64),
            };
            assert_eq!(invitation.to_string().parse(), Ok(invitation));
        }
        let (ca, token) = ("a".repeat(64), "b".repeat(64));
        for bad in [
            String::new(),
            "demo".to_owned(),
            format!("cloudtik://demo@h:1/{ca}"),
            format!("cloudtik://demo@h/{ca}/{token}"),
            format!("cloudtik://demo@:1/{ca}/{token}"),
            format!("cloudtik://demo@h:99999/{ca}/{token}"),
            format!("cloudtik://demo@h:1/{ca}/{token}/"),
            format!("cloudtik://demo@h:1/{}/{token}", &ca[1..]),
            format!("cloudtik://Demo@h:1/{ca}/{token}"),
            format!("cloudtik://demo@h h:1/{ca}/{token}"),
        ] {
            assert_eq!(bad.parse::<Invitation>(), Err(InvalidInvitation), "{bad}");
        }
    }
}
