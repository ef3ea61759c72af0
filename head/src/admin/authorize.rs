//! Who may do what: every request passes here before it reaches a service.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cloudtik_brain::access::Denied;
use cloudtik_model::access::Role;
use cloudtik_model::{Actor, AdministratorName};
use cloudtik_protocol::AdminMethod;
use cloudtik_protocol::ending::Ending;
use cloudtik_protocol::pki::{Administrator, Peer};
use cloudtik_protocol::transport::Caller;
use tonic::Status;

use super::roles;
use crate::access::Access;

/// A person who asks, as an extension of each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Absent for the local user of the head's node.
    pub name: Option<AdministratorName>,
    pub role: Role,
}

impl User {
    pub fn actor(&self) -> Actor {
        match &self.name {
            Some(name) => Actor::Administrator { name: name.clone(), role: self.role },
            None => Actor::LOCAL,
        }
    }
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name.as_ref().map_or("the local user", |name| name.as_str()))
    }
}

/// Refuses what a role does not suffice for.
pub fn needs(user: &User, what: &str, least: Role) -> Result<(), Status> {
    if user.role >= least {
        return Ok(());
    }
    Err(Status::permission_denied(format!("{what} needs the role {least}; {user} has the role {}", user.role)))
}

fn denied(person: &Administrator, denied: Denied) -> Status {
    let name = &person.name;
    Status::unauthenticated(match denied {
        Denied::Revoked => format!("the access of {name} was revoked"),
        Denied::Expired => format!("the access of {name} has expired"),
        Denied::Unknown => format!("the access of {name} is not known to this head"),
    })
}

/// Lets requests of administrators through whose certificate still counts and whose role suffices, and has their answers end
/// when it ceases to count. Others reach only what asks for no administrator.
pub async fn authorize(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    let person = match request.extensions().get::<Caller>() {
        Some(Caller::Certified(Peer::Admin(person))) => Some(person.clone()),
        _ => None,
    };
    let user = match (&person, request.extensions().get::<Caller>()) {
        (Some(person), _) => match access.check(person) {
            Ok(_) => Some(User { name: Some(person.name.clone()), role: person.role }),
            Err(why) => return refuse(&access, "access-ended", denied(person, why), &request),
        },
        (None, Some(Caller::LocalUser)) => Some(User { name: None, role: Role::Admin }),
        (None, _) => None,
    };
    let path = request.uri().path();
    if path.starts_with(AdminMethod::PREFIX) {
        let Some(user) = &user else {
            let status = Status::permission_denied("an administrator's certificate is needed");
            return refuse(&access, "not-an-administrator", status, &request);
        };
        // What has no line in the table is no method of this head.
        let Some(method) = AdminMethod::of_path(path) else {
            return Status::unimplemented("this head does not know the request; upgrade it").into_http();
        };
        if let Err(status) = needs(user, &roles::words(method), roles::of_method(method)) {
            return refuse(&access, "role", status, &request);
        }
    }
    if let Some(user) = user {
        request.extensions_mut().insert(user);
    }
    let answer = next.run(request).await;
    let Some(person) = person else { return answer };
    answer.map(|body| {
        let end = async move { denied(&person, access.ended(&person).await) };
        Body::new(Ending::new(body, end))
    })
}

fn refuse(access: &Access, reason: &'static str, status: Status, request: &Request) -> Response {
    access.telemetry().refuse(reason);
    tracing::warn!(reason, "refused: {}", status.message());
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("application/grpc")) {
        return status.into_http();
    }
    (StatusCode::FORBIDDEN, format!("{}\n", status.message())).into_response()
}
