//! Granting access, and taking it back.

use std::time::Duration;

use cloudtik_model::AdministratorName;
use cloudtik_model::access::{Granted, Invitation, Revoked, Role};
use cloudtik_protocol::wire;
use tonic::Status;

use super::{Head, parse};
use crate::access::status_of;

/// The longest life of an access.
const MAX_LIFETIME: Duration = Duration::from_secs(366 * 24 * 3600);
/// The longest time that an offer may wait to be accepted.
const MAX_OFFER: Duration = Duration::from_secs(7 * 24 * 3600);

impl Head {
    pub(super) async fn grant(&self, request: wire::AccessGrantRequest) -> Result<Granted, Status> {
        let name: AdministratorName = parse("name", &request.name)?;
        let role: Role = request.role.parse().map_err(|e: cloudtik_model::access::InvalidRole| Status::invalid_argument(e.to_string()))?;
        let within = |what: &str, ms: u64, longest: Duration| {
            let span = Duration::from_millis(ms);
            let days = longest.as_secs() / (24 * 3600);
            if span.is_zero() || span > longest {
                return Err(Status::invalid_argument(format!("{what} can last from a moment to {days} days")));
            }
            Ok(span)
        };
        let lasts = within("access", request.lasts_ms, MAX_LIFETIME)?;
        let accept_within = within("an invitation", request.accept_within_ms, MAX_OFFER)?;
        let (grant, token) = self.access.offer(self.actor.clone(), name, role, lasts, accept_within).await.map_err(status_of)?;
        let invitation =
            Invitation { cluster: self.settings.cluster.clone(), address: self.view.bus.clone(), ca: self.root_digest.clone(), token };
        Ok(Granted {
            cluster: self.settings.cluster.clone(),
            name: grant.name,
            role: grant.role,
            expires: grant.expires,
            accept_by: grant.accept_by.min(grant.expires),
            invitation: invitation.to_string(),
        })
    }

    pub(super) async fn revoke(&self, request: wire::AccessRevokeRequest) -> Result<Revoked, Status> {
        let name: AdministratorName = parse("name", &request.name)?;
        let (grant, was) = self.access.revoke(self.actor.clone(), name).await.map_err(status_of)?;
        Ok(Revoked { name: grant.name, role: grant.role, was })
    }
}
