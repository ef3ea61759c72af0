//! Who may use the cluster: grants, their acceptance and their end. What is decided about them is in `cloudtik_brain::access`;
//! here it is stored, and whoever waits for it is told.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use cloudtik_brain::Record;
use cloudtik_brain::access::{AccessEvent, Attempts, Change, Denied, GrantRecord, Grants, Offer, OfferRefusal};
use cloudtik_model::access::{Accepted, Grant, GrantState, Role};
use cloudtik_model::event::{Event, What};
use cloudtik_model::{Actor, AdministratorName, ClusterName, Timestamp, WorkspaceName};
use cloudtik_protocol::pki::Administrator;
use cloudtik_protocol::transport::Origin;
use cloudtik_protocol::{PROTOCOL_VERSION, pki, wire};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::identity::Authority;
use crate::revisions::Revisions;
use crate::runner::BrainHandle;
use crate::store::{self, Store};
use crate::telemetry::Telemetry;

/// The longest time between two looks at whether a certificate still counts: the wall clock may be set.
const LOOK: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the offer is refused")]
    Offer(OfferRefusal),
    #[error("{0} has no access")]
    NotGranted(AdministratorName),
    #[error("the invitation is not valid, or was used")]
    NotValid,
    #[error(transparent)]
    Store(store::Error),
    #[error("the certificate cannot be made")]
    Certify(anyhow::Error),
    #[error("the task ended")]
    Task(#[source] tokio::task::JoinError),
}

/// A cheap handle.
#[derive(Clone)]
pub struct Access(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    grants: watch::Sender<Arc<Grants>>,
    /// One change at a time, from the decision until it is stored.
    changing: tokio::sync::Mutex<()>,
    attempts: Mutex<Attempts>,
    started: Instant,
    /// Told of events, once it runs.
    brain: OnceLock<BrainHandle>,
    telemetry: Telemetry,
}

fn now() -> Timestamp {
    Timestamp(std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64))
}

fn after(now: Timestamp, span: Duration) -> Timestamp {
    Timestamp(now.0.saturating_add(span.as_millis() as u64))
}

impl Access {
    pub fn open(store: Arc<dyn Store>, telemetry: Telemetry) -> Result<Self, store::Error> {
        let grants = watch::Sender::new(Arc::new(Grants::new(store.grants()?)));
        Ok(Self(Arc::new(Inner {
            store,
            grants,
            changing: tokio::sync::Mutex::default(),
            attempts: Mutex::default(),
            started: Instant::now(),
            brain: OnceLock::new(),
            telemetry,
        })))
    }

    pub fn announce_to(&self, brain: BrainHandle) {
        let _ = self.0.brain.set(brain);
    }

    pub fn telemetry(&self) -> &Telemetry {
        &self.0.telemetry
    }

    fn grants(&self) -> Arc<Grants> {
        self.0.grants.borrow().clone()
    }

    pub fn list(&self) -> Vec<Grant> {
        self.grants().list(now())
    }

    /// Whether a certificate still counts, and until when if nothing happens.
    pub fn check(&self, person: &Administrator) -> Result<Timestamp, Denied> {
        let ends = Timestamp(u64::try_from(person.ends).unwrap_or(0).saturating_mul(1_000));
        if ends <= now() {
            return Err(Denied::Expired);
        }
        // Whoever the root vouches for needs no grant.
        let Some(number) = person.grant else { return Ok(ends) };
        self.grants().admits(now(), number, &person.name, person.role).map(|expires| expires.min(ends))
    }

    /// Returns when a certificate ceases to count.
    pub async fn ended(&self, person: &Administrator) -> Denied {
        let mut changes = self.0.grants.subscribe();
        loop {
            changes.borrow_and_update();
            match self.check(person) {
                Err(denied) => return denied,
                Ok(until) => {
                    let left = Duration::from_millis(until.0.saturating_sub(now().0));
                    tokio::select! {
                        _ = changes.changed() => {}
                        () = tokio::time::sleep(left.min(LOOK)) => {}
                    }
                }
            }
        }
    }

    /// Offers access; also gives the token, of which only the digest is kept.
    pub async fn offer(
        &self,
        by: Actor,
        name: AdministratorName,
        role: Role,
        lasts: Duration,
        accept_within: Duration,
    ) -> Result<(GrantRecord, String), Error> {
        let _one = self.0.changing.lock().await;
        let (now, token) = (now(), pki::hex(&pki::random::<32>()));
        let digest = pki::sha256_hex(token.as_bytes());
        let offer = Offer { name, role, expires: after(now, lasts), accept_by: after(now, accept_within), token: digest };
        let change = self.grants().offer(now, by, offer).map_err(Error::Offer)?;
        let grant = only(&change);
        self.store(now, change).await?;
        Ok((grant, token))
    }

    /// Ends somebody's access, or withdraws an offer; also says which of it.
    pub async fn revoke(&self, by: Actor, name: AdministratorName) -> Result<(GrantRecord, GrantState), Error> {
        let _one = self.0.changing.lock().await;
        let now = now();
        let (change, was) = self.grants().revoke(now, by, &name).map_err(|_| Error::NotGranted(name))?;
        let grant = only(&change);
        self.store(now, change).await?;
        Ok((grant, was))
    }

    /// Takes the token of an offer and has `certify` make the certificate before the token is used up.
    async fn accept<T>(
        &self,
        token: &str,
        key: &str,
        from: IpAddr,
        certify: impl FnOnce(&GrantRecord, Timestamp) -> anyhow::Result<T>,
    ) -> Result<(GrantRecord, T), Error> {
        let _one = self.0.changing.lock().await;
        let now = now();
        let digest = pki::sha256_hex(token.as_bytes());
        let change = self.grants().accept(now, &digest, key, &from.to_string()).map_err(|_| Error::NotValid)?;
        let grant = only(&change);
        let certified = certify(&grant, now).map_err(Error::Certify)?;
        self.store(now, change).await?;
        Ok((grant, certified))
    }

    async fn store(&self, at: Timestamp, change: Change) -> Result<(), Error> {
        let mut records: Vec<Record> = change.grants.iter().cloned().map(Record::Grant).collect();
        records.extend(change.forgotten.iter().map(|number| Record::GrantGone { number: *number }));
        records.push(Record::Event(event(at, &change.what)));
        let store = self.0.store.clone();
        // What is stored must be taken in, also if whoever asked goes away.
        let own = self.clone();
        let storing = tokio::task::spawn_blocking(move || {
            let position = store.commit(&records)?;
            own.0.grants.send_modify(|grants| Arc::make_mut(grants).take(change));
            Ok(position)
        });
        let position = storing.await.map_err(Error::Task)?.map_err(Error::Store)?;
        if let Some(brain) = self.0.brain.get() {
            brain.stored_event(position);
        }
        Ok(())
    }

    fn monotonic(&self) -> u64 {
        self.0.started.elapsed().as_millis() as u64
    }

    fn attempts(&self) -> std::sync::MutexGuard<'_, Attempts> {
        self.0.attempts.lock().expect("nothing panics while holding the lock")
    }
}

fn only(change: &Change) -> GrantRecord {
    change.grants.first().cloned().expect("each change of access is about one grant")
}

fn event(at: Timestamp, what: &AccessEvent) -> Event {
    let (actor, what) = match what.clone() {
        AccessEvent::Granted { name, role, by, .. } => (by, What::AccessGranted { name, role }),
        AccessEvent::Accepted { name, role, from } => {
            (Actor::Administrator { name: name.clone(), role }, What::AccessAccepted { name, role, from })
        }
        AccessEvent::Revoked { name, role, by } => (by, What::AccessRevoked { name, role }),
    };
    Event { actor: Some(actor), ..Event::new(at, what) }
}

/// The one mapping from what goes wrong with access.
pub fn status_of(error: Error) -> Status {
    match error {
        Error::Offer(OfferRefusal::Held { name, role, state }) => {
            let what = match state {
                GrantState::Offered => format!("{name} has an invitation as {role} that was not accepted yet"),
                _ => format!("{name} has access already, as {role}"),
            };
            Status::failed_precondition(format!("{what}; revoke it first"))
        }
        Error::Offer(OfferRefusal::TooMany) => Status::resource_exhausted("too many administrators have access; revoke some first"),
        Error::NotGranted(name) => Status::not_found(format!("{name} has no access")),
        Error::NotValid => Status::permission_denied("the invitation is not valid, or was used"),
        Error::Store(error) => Status::unavailable(format!(
            "nothing was changed, because the head cannot store it: {}",
            cloudtik_protocol::logging::chain(&error)
        )),
        Error::Certify(error) => Status::internal(format!("{error:#}")),
        Error::Task(error) => Status::internal(error.to_string()),
    }
}

/// The service for those who have an invitation and no certificate yet.
pub struct AccessService {
    pub access: Access,
    pub authority: Authority,
    pub cluster: ClusterName,
    pub revisions: Revisions,
    pub telemetry: Telemetry,
}

impl AccessService {
    fn refuse(&self, reason: &'static str, from: IpAddr, status: Status) -> Status {
        self.telemetry.refuse(reason);
        tracing::warn!(reason, %from, "refused: {}", status.message());
        status
    }
}

#[tonic::async_trait]
impl wire::access_server::Access for AccessService {
    async fn accept(&self, request: Request<wire::AcceptRequest>) -> Result<Response<wire::AcceptReply>, Status> {
        let from = request.extensions().get::<Origin>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |origin| origin.0.ip());
        let request = request.into_inner();
        if request.protocol_version != PROTOCOL_VERSION {
            let message =
                format!("this cloudtik speaks protocol {}, the head {PROTOCOL_VERSION}: use the same version", request.protocol_version);
            return Err(self.refuse("protocol-version", from, Status::failed_precondition(message)));
        }
        let now = self.access.monotonic();
        if !self.access.attempts().may_try(now, from) {
            let status = Status::resource_exhausted("too many invitations from this address were not valid; wait a minute");
            return Err(self.refuse("invitation-rate", from, status));
        }
        let key = pki::request_fingerprint(&request.certificate_request).map_err(|e| {
            // It costs as much to look at as a wrong token.
            self.access.attempts().failed(now, from);
            self.refuse("malformed-invitation", from, Status::invalid_argument(e.to_string()))
        })?;
        let certify = |grant: &GrantRecord, now| self.authority.certify_administrator(&request.certificate_request, grant, now);
        let accepted = self.access.accept(&request.token, &key, from, certify).await;
        let (grant, (chain, expires)): (_, (Vec<CertificateDer<'static>>, _)) = accepted.map_err(|error| {
            if matches!(error, Error::NotValid) {
                self.access.attempts().failed(now, from);
            }
            self.refuse("invitation", from, status_of(error))
        })?;
        let workspace = self.revisions.latest().map(|(_, _, planner)| planner.cluster().workspace.clone());
        let workspace = workspace.or_else(|| WorkspaceName::new("default").ok()).ok_or_else(|| Status::internal("no workspace"))?;
        let document = Accepted { cluster: self.cluster.clone(), workspace, name: grant.name, role: grant.role, expires };
        let document = serde_json::to_vec(&document).map_err(|e| Status::internal(e.to_string()))?.into();
        Ok(Response::new(wire::AcceptReply { chain: chain.iter().map(|c| c.to_vec().into()).collect(), document }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_grants_of_every_released_form_are_read() {
        let stored = r#"{"number":7,"name":"ada@example.org","role":"operator","granted_at":1,"granted_by":{"actor":"local-user"},"expires":9,"token":"d1","accept_by":5,"accepted":{"at":2,"key":"d2","from":"10.0.0.7"},"revoked":{"at":3,"by":{"actor":"administrator","name":"bob","role":"admin"}}}"#;
        let record: GrantRecord = serde_json::from_str(stored).expect("is read");
        assert_eq!(serde_json::to_string(&record).expect("becomes JSON"), stored);
        assert_eq!(record.state(Timestamp(4)), GrantState::Revoked);
        let offered = r#"{"number":8,"name":"ada","role":"viewer","granted_at":1,"granted_by":{"actor":"local-user"},"expires":9,"token":"d1","accept_by":5}"#;
        let record: GrantRecord = serde_json::from_str(offered).expect("what was not there yet is absent");
        assert_eq!(record.state(Timestamp(4)), GrantState::Offered);
    }
}
