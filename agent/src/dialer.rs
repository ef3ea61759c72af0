//! Connections to the head. Every stream of bulk bytes (an artifact, a program's output) has one of its own: streams of
//! one connection share its window, and one whose reader pauses would in the end hold up heartbeats.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use cloudtik_model::ClusterName;
use cloudtik_protocol::{pki, tls, transport};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tonic::transport::Channel;

use crate::identity::NodeIdentity;

/// A cheap handle.
#[derive(Clone)]
pub struct Dialer {
    /// `host:port` of the head's bus.
    pub head: String,
    /// The node's address, where its provider chose one: the node speaks from it too.
    pub from: Option<IpAddr>,
    pub cluster: ClusterName,
    pub identity: NodeIdentity,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").field("head", &self.head).finish_non_exhaustive()
    }
}

impl Dialer {
    /// A connection of one's own, as the node that has joined.
    pub async fn dial(&self) -> anyhow::Result<Channel> {
        let (name, config) = self.identify()?;
        transport::dial(&self.head, self.from, &name, config).await.with_context(|| format!("reaching {}", self.head))
    }

    /// The same for the link, whose heartbeats must not be late.
    pub async fn dial_link(&self) -> anyhow::Result<Channel> {
        let (name, config) = self.identify()?;
        transport::dial_for_messages(&self.head, self.from, &name, config).await.with_context(|| format!("reaching {}", self.head))
    }

    fn identify(&self) -> anyhow::Result<(ServerName<'static>, Arc<ClientConfig>)> {
        let identity = self.identity.current().context("there is no certificate")?;
        let config = tls::node_client_config(self.identity.root(), Some(&identity), self.identity.clock())?;
        Ok((tls::server_name(&pki::head_name(&self.cluster)), config))
    }
}
