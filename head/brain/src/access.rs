//! Who has access to the cluster: offers, what they become, and whether a certificate still counts.
//!
//! The functions decide and change nothing: the body stores the [`Change`] and then has it taken in by [`Grants::take`].

mod attempts;

use std::collections::BTreeMap;

use cloudtik_model::access::{Grant, GrantState, Role};
use cloudtik_model::{Actor, AdministratorName, Timestamp};
use serde::{Deserialize, Serialize};

pub use attempts::Attempts;

/// Grants that ended and are kept to be looked at.
const KEPT: usize = 500;
/// Grants that hold at once, and offers that wait.
const MAX_GRANTS: usize = 2_000;

/// A grant as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRecord {
    /// Unique in the cluster's life.
    pub number: u64,
    pub name: AdministratorName,
    pub role: Role,
    pub granted_at: Timestamp,
    pub granted_by: Actor,
    /// When the access ends.
    pub expires: Timestamp,
    /// SHA-256 of the token that accepts it, in hexadecimal.
    pub token: String,
    /// Until when the token is good.
    pub accept_by: Timestamp,
    #[serde(default)]
    pub accepted: Option<Acceptance>,
    #[serde(default)]
    pub revoked: Option<Revocation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    pub at: Timestamp,
    /// SHA-256 of the public key that is certified, in hexadecimal.
    pub key: String,
    /// The address that it came from.
    pub from: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    pub at: Timestamp,
    pub by: Actor,
}

impl GrantRecord {
    pub fn state(&self, now: Timestamp) -> GrantState {
        match (&self.revoked, &self.accepted) {
            (Some(_), _) => GrantState::Revoked,
            (None, Some(_)) if self.expires <= now => GrantState::Expired,
            (None, Some(_)) => GrantState::Active,
            (None, None) if self.accept_by.min(self.expires) <= now => GrantState::Lapsed,
            (None, None) => GrantState::Offered,
        }
    }

    fn holds(&self, now: Timestamp) -> bool {
        matches!(self.state(now), GrantState::Offered | GrantState::Active)
    }
}

/// What somebody wants to grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub name: AdministratorName,
    pub role: Role,
    pub expires: Timestamp,
    pub accept_by: Timestamp,
    /// SHA-256 of the token, in hexadecimal.
    pub token: String,
}

/// What is to be stored in one step, and then taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub grants: Vec<GrantRecord>,
    /// The numbers of grants that are not kept any longer.
    pub forgotten: Vec<u64>,
    pub what: AccessEvent,
}

/// What happened, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessEvent {
    Granted { name: AdministratorName, role: Role, by: Actor, expires: Timestamp },
    Accepted { name: AdministratorName, role: Role, from: String },
    Revoked { name: AdministratorName, role: Role, by: Actor },
}

/// Why an offer is not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OfferRefusal {
    /// The person has access, or another offer for this role or another one waits.
    Held {
        name: AdministratorName,
        role: Role,
        state: GrantState,
    },
    TooMany,
}

/// There is nobody of that name who has access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotGranted;

/// A token is wrong, used, withdrawn or late; which of it is not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotValid;

/// Why a certificate does not count any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    Revoked,
    Expired,
    /// No grant of that number was accepted: it was made by an earlier life of the cluster, or forgotten after its end.
    Unknown,
}

/// All grants, by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants(BTreeMap<u64, GrantRecord>);

impl Grants {
    pub fn new(records: Vec<GrantRecord>) -> Self {
        Self(records.into_iter().map(|record| (record.number, record)).collect())
    }

    /// Offers access. One person has one grant at a time; an offer that was not accepted in time gives way.
    pub fn offer(&self, now: Timestamp, by: Actor, offer: Offer) -> Result<Change, OfferRefusal> {
        if let Some(held) = self.0.values().find(|g| g.name == offer.name && g.holds(now)) {
            return Err(OfferRefusal::Held { name: offer.name, role: held.role, state: held.state(now) });
        }
        if self.0.values().filter(|g| g.holds(now)).count() >= MAX_GRANTS {
            return Err(OfferRefusal::TooMany);
        }
        let Offer { name, role, expires, accept_by, token } = offer;
        let record = GrantRecord {
            number: self.0.last_key_value().map_or(0, |(number, _)| *number).saturating_add(1),
            name: name.clone(),
            role,
            granted_at: now,
            granted_by: by.clone(),
            expires,
            token,
            accept_by,
            accepted: None,
            revoked: None,
        };
        // The newest always stays: numbers are counted from it.
        let ended: Vec<u64> = self.0.values().filter(|g| !g.holds(now)).map(|g| g.number).collect();
        let forgotten = ended[..ended.len().saturating_sub(KEPT)].to_vec();
        Ok(Change { grants: vec![record], forgotten, what: AccessEvent::Granted { name, role, by, expires } })
    }

    /// Has the key certified of whoever brings the token of an offer.
    pub fn accept(&self, now: Timestamp, token: &str, key: &str, from: &str) -> Result<Change, NotValid> {
        let offered = self.0.values().find(|g| g.token == token && g.state(now) == GrantState::Offered).ok_or(NotValid)?;
        let accepted = Some(Acceptance { at: now, key: key.to_owned(), from: from.to_owned() });
        let record = GrantRecord { accepted, ..offered.clone() };
        let what = AccessEvent::Accepted { name: record.name.clone(), role: record.role, from: from.to_owned() };
        Ok(Change { grants: vec![record], forgotten: Vec::new(), what })
    }

    /// Takes back what somebody has, or was offered; also says which of it.
    pub fn revoke(&self, now: Timestamp, by: Actor, name: &AdministratorName) -> Result<(Change, GrantState), NotGranted> {
        let held = self.0.values().find(|g| g.name == *name && g.holds(now)).ok_or(NotGranted)?;
        let record = GrantRecord { revoked: Some(Revocation { at: now, by: by.clone() }), ..held.clone() };
        let what = AccessEvent::Revoked { name: record.name.clone(), role: record.role, by };
        Ok((Change { grants: vec![record], forgotten: Vec::new(), what }, held.state(now)))
    }

    /// Whether a certificate that was made for a grant still counts, and until when if nothing happens.
    pub fn admits(&self, now: Timestamp, number: u64, name: &AdministratorName, role: Role) -> Result<Timestamp, Denied> {
        let grant = self.0.get(&number).filter(|g| g.name == *name && g.role == role).ok_or(Denied::Unknown)?;
        match grant.state(now) {
            GrantState::Active => Ok(grant.expires),
            GrantState::Revoked => Err(Denied::Revoked),
            GrantState::Expired => Err(Denied::Expired),
            GrantState::Offered | GrantState::Lapsed => Err(Denied::Unknown),
        }
    }

    pub fn take(&mut self, change: Change) {
        for number in change.forgotten {
            self.0.remove(&number);
        }
        self.0.extend(change.grants.into_iter().map(|record| (record.number, record)));
    }

    /// For people, oldest first.
    pub fn list(&self, now: Timestamp) -> Vec<Grant> {
        let shown = |g: &GrantRecord| Grant {
            name: g.name.clone(),
            role: g.role,
            state: g.state(now),
            number: g.number,
            granted_at: g.granted_at,
            granted_by: g.granted_by.clone(),
            expires: g.expires,
            accept_by: g.accepted.is_none().then_some(g.accept_by),
            accepted_at: g.accepted.as_ref().map(|a| a.at),
            accepted_from: g.accepted.as_ref().map(|a| a.from.clone()),
            revoked_at: g.revoked.as_ref().map(|r| r.at),
            revoked_by: g.revoked.as_ref().map(|r| r.by.clone()),
        };
        self.0.values().map(shown).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> AdministratorName {
        AdministratorName::new(text).expect("valid")
    }

    fn offer(who: &str, role: Role, token: &str) -> Offer {
        Offer { name: name(who), role, expires: Timestamp(1_000), accept_by: Timestamp(100), token: token.to_owned() }
    }

    fn granted(who: &str, role: Role, token: &str) -> Grants {
        let mut grants = Grants::default();
        grants.take(grants.offer(Timestamp(1), Actor::LOCAL, offer(who, role, token)).expect("is offered"));
        grants
    }

    #[test]
    fn a_token_is_good_once_and_for_a_while() {
        let mut grants = granted("ada", Role::Operator, "t");
        assert_eq!(grants.accept(Timestamp(2), "x", "key", "h"), Err(NotValid), "wrong");
        assert_eq!(grants.accept(Timestamp(100), "t", "key", "h"), Err(NotValid), "late");
        assert_eq!(grants.admits(Timestamp(2), 1, &name("ada"), Role::Operator), Err(Denied::Unknown), "not accepted");
        grants.take(grants.accept(Timestamp(99), "t", "key", "h").expect("in time"));
        assert_eq!(grants.accept(Timestamp(99), "t", "key", "h"), Err(NotValid), "used");
        assert_eq!(grants.admits(Timestamp(500), 1, &name("ada"), Role::Operator), Ok(Timestamp(1_000)));
    }

    #[test]
    fn a_certificate_counts_for_its_grant_only_and_until_its_end() {
        let mut grants = granted("ada", Role::Viewer, "t");
        grants.take(grants.accept(Timestamp(2), "t", "key", "h").expect("accepts"));
        let admits = |grants: &Grants, at, number, who, role| grants.admits(Timestamp(at), number, &name(who), role).map(drop);
        assert_eq!(admits(&grants, 3, 1, "ada", Role::Viewer), Ok(()));
        assert_eq!(admits(&grants, 3, 1, "ada", Role::Admin), Err(Denied::Unknown), "another role than was granted");
        assert_eq!(admits(&grants, 3, 1, "eve", Role::Viewer), Err(Denied::Unknown));
        assert_eq!(admits(&grants, 3, 2, "ada", Role::Viewer), Err(Denied::Unknown));
        assert_eq!(admits(&grants, 1_000, 1, "ada", Role::Viewer), Err(Denied::Expired));
        let (revoked, was) =
            grants.revoke(Timestamp(4), Actor::Administrator { name: name("bob"), role: Role::Admin }, &name("ada")).expect("revokes");
        assert_eq!(was, GrantState::Active);
        grants.take(revoked);
        assert_eq!(admits(&grants, 5, 1, "ada", Role::Viewer), Err(Denied::Revoked));
        assert_eq!(grants.revoke(Timestamp(6), Actor::LOCAL, &name("ada")), Err(NotGranted));
        // Granted anew, what the old certificate was made for stays revoked.
        grants.take(grants.offer(Timestamp(7), Actor::LOCAL, offer("ada", Role::Viewer, "u")).expect("is offered"));
        grants.take(grants.accept(Timestamp(8), "u", "key", "h").expect("accepts"));
        assert_eq!(admits(&grants, 9, 1, "ada", Role::Viewer), Err(Denied::Revoked));
        assert_eq!(admits(&grants, 9, 2, "ada", Role::Viewer), Ok(()));
        assert_eq!(Grants::new(grants.0.values().cloned().collect()), grants, "another head knows the same");
    }

    #[test]
    fn a_person_has_one_grant_and_an_offer_that_lapsed_gives_way() {
        let mut grants = granted("ada", Role::Viewer, "t");
        let refused = grants.offer(Timestamp(2), Actor::LOCAL, offer("ada", Role::Admin, "u"));
        assert_eq!(refused, Err(OfferRefusal::Held { name: name("ada"), role: Role::Viewer, state: GrantState::Offered }));
        grants.take(
            grants
                .offer(Timestamp(100), Actor::LOCAL, Offer { accept_by: Timestamp(200), ..offer("ada", Role::Admin, "u") })
                .expect("gives way"),
        );
        assert_eq!(grants.accept(Timestamp(101), "t", "key", "h"), Err(NotValid), "the old token is dead");
        let (withdrawn, was) = grants.revoke(Timestamp(102), Actor::LOCAL, &name("ada")).expect("an offer is withdrawn");
        assert_eq!(was, GrantState::Offered);
        grants.take(withdrawn);
        assert_eq!(grants.accept(Timestamp(103), "u", "key", "h"), Err(NotValid));
    }

    #[test]
    fn what_ended_is_kept_for_a_while_and_numbers_are_never_used_again() {
        let mut grants = Grants::default();
        for n in 0..KEPT as u64 + 50 {
            let change = grants.offer(Timestamp(1), Actor::LOCAL, offer("ada", Role::Viewer, &format!("t{n}"))).expect("is offered");
            assert_eq!(change.grants[0].number, n + 1);
            grants.take(change);
            let (revoked, _) = grants.revoke(Timestamp(2), Actor::LOCAL, &name("ada")).expect("revokes");
            grants.take(revoked);
        }
        assert!(grants.0.len() <= KEPT + 1, "{}", grants.0.len());
    }
}
