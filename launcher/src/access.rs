//! `cloudtik access`: who may use a cluster.

use std::io::Read;

use cloudtik_model::access::{Accepted, Grant, GrantState, Granted, Invitation, Revoked};
use cloudtik_model::{ClusterName, Timestamp};
use cloudtik_protocol::wire;
use serde::Serialize;

use crate::cli::{Access, Target};
use crate::client::{Client, document};
use crate::failure::{Failure, USAGE};
use crate::output::{Printer, ago, clock};
use crate::remote;

pub async fn run(printer: &Printer, command: Access) -> Result<(), Failure> {
    match command {
        Access::List { cluster } => list(printer, (&cluster).into()).await,
        Access::Grant { cluster, name, role, expires, accept_within } => {
            let request = wire::AccessGrantRequest {
                name: name.to_string(),
                role: role.to_string(),
                lasts_ms: expires.as_millis() as u64,
                accept_within_ms: accept_within.as_millis() as u64,
            };
            grant(printer, (&cluster).into(), request).await
        }
        Access::Revoke { cluster, name } => revoke(printer, (&cluster).into(), name.to_string()).await,
        Access::Accept { invitation, local_name, address } => accept(printer, &invitation, local_name, address).await,
    }
}

async fn list(printer: &Printer, cluster: Target<'_>) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    let grants: Vec<Grant> = document(client.admin().access_list(wire::Empty {}).await?.into_inner())?;
    if printer.is_json() {
        printer.json(&grants);
        return Ok(());
    }
    if grants.is_empty() {
        printer.say(&format!("nobody was granted access to {}; the user who created it needs none", client.place.name));
        return Ok(());
    }
    let row = |grant: &Grant| {
        let ends = match grant.state {
            GrantState::Offered | GrantState::Lapsed => grant.accept_by.unwrap_or(grant.expires),
            GrantState::Active | GrantState::Expired => grant.expires,
            GrantState::Revoked => grant.revoked_at.unwrap_or(grant.expires),
        };
        vec![
            grant.name.to_string(),
            grant.role.to_string(),
            grant.state.name().to_owned(),
            clock(ends),
            grant.granted_by.to_string(),
            ago(grant.granted_at),
        ]
    };
    printer.table(&["NAME", "ROLE", "STATE", "UNTIL", "GRANTED BY", "AGE"], &grants.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

async fn grant(printer: &Printer, cluster: Target<'_>, request: wire::AccessGrantRequest) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    let granted: Granted = document(client.admin().access_grant(request).await?.into_inner())?;
    if printer.is_json() {
        printer.json(&granted);
        return Ok(());
    }
    let Granted { cluster, name, role, expires, accept_by, invitation } = &granted;
    printer.say(&format!("{name} is invited to {cluster} as {role}, until {}.", clock(*expires)));
    printer.say(&format!("Until {}, {name} can run, once:\n", clock(*accept_by)));
    let invitation = shlex::try_quote(invitation).map_or_else(|_| invitation.clone(), |quoted| quoted.into_owned());
    printer.line(&format!("cloudtik access accept {invitation}"));
    Ok(())
}

async fn revoke(printer: &Printer, cluster: Target<'_>, name: String) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    let cluster = &client.place.name;
    let revoked = client.admin().access_revoke(wire::AccessRevokeRequest { name }).await.map_err(Failure::from);
    let hint = |failure: Failure| failure.hint(format!("`cloudtik access list {cluster}` lists who has"));
    let revoked: Revoked = document(revoked.map_err(hint)?.into_inner())?;
    if printer.is_json() {
        printer.json(&revoked);
        return Ok(());
    }
    let Revoked { name, role, was } = &revoked;
    printer.line(&match was {
        GrantState::Offered => format!("the invitation of {name} to {cluster} as {role} is withdrawn"),
        _ => format!("{name} has no access to {cluster} any more"),
    });
    Ok(())
}

async fn accept(printer: &Printer, text: &str, local_name: Option<ClusterName>, address: Option<String>) -> Result<(), Failure> {
    let mut read = String::new();
    let text = if text == "-" {
        std::io::stdin().lock().read_to_string(&mut read)?;
        // The whole line that was printed may have been kept.
        read.split_whitespace().last().unwrap_or_default()
    } else {
        text
    };
    let mut invitation: Invitation = text.parse().map_err(|e: cloudtik_model::access::InvalidInvitation| {
        Failure::new(USAGE, e.to_string()).hint("copy the whole line that `cloudtik access grant` printed")
    })?;
    if let Some(address) = address {
        // What an invitation may hold; the head proves itself by its certificate, whatever its address.
        let other = Invitation { address, ..invitation };
        invitation = other.to_string().parse().map_err(|_| Failure::new(USAGE, format!("{:?} is not HOST:PORT", other.address)))?;
    }
    let (paths, accepted) = remote::accept(&invitation, local_name).await?;
    #[derive(Serialize)]
    struct Printed<'a> {
        #[serde(flatten)]
        accepted: &'a Accepted,
        /// What the cluster is called in commands.
        local_name: &'a str,
        directory: String,
    }
    if printer.is_json() {
        let directory = paths.directory.display().to_string();
        printer.json(&Printed { accepted: &accepted, local_name: paths.name.as_str(), directory });
        return Ok(());
    }
    let until = clock(Timestamp(accepted.expires.0));
    printer.line(&format!("{} has access to {} as {}, until {until}", accepted.name, accepted.cluster, accepted.role));
    printer.say(&format!("Look at it with `cloudtik status {}`", paths.name));
    Ok(())
}
