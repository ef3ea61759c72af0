//! Who the node is: a key that is made here and stays here, and the certificate that the head gives for it.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_protocol::clock::ClusterClock;
use cloudtik_protocol::files::{create_private_directory, write_atomically};
use cloudtik_protocol::pki::{self, Identity};
use cloudtik_protocol::wire::join_client::JoinClient;
use cloudtik_protocol::{PROTOCOL_VERSION, VERSION, tls, transport, wire};
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::home::Home;

/// The head's time is written down when it is so many milliseconds later than what is known.
const TIME_STEP: i64 = 3_600_000;

/// The node's identity as it is now, and how to have another.
#[derive(Clone)]
pub struct NodeIdentity {
    home: Home,
    bootstrap: Arc<Bootstrap>,
    key: Arc<KeyPair>,
    root: CertificateDer<'static>,
    address: String,
    clock: ClusterClock,
    /// When to renew, as a share of the certificate's life before its end: nodes made together renew apart.
    renew_before: f64,
    current: watch::Sender<Option<Identity>>,
}

impl NodeIdentity {
    pub fn load(home: &Home, bootstrap: &Bootstrap, address: &str) -> anyhow::Result<Self> {
        let directory = home.path().join("identity");
        create_private_directory(&directory).with_context(|| format!("making {}", directory.display()))?;
        let key = pki::load_or_generate_key(&home.identity("node.key"))?;
        let root = pki::parse_chain(bootstrap.ca.as_bytes())?.into_iter().next().context("bootstrap.json has no root certificate")?;
        let ca = home.identity("ca.crt");
        // Not without need: a full disk must not keep an agent from starting.
        if fs::read(&ca).ok().as_deref() != Some(bootstrap.ca.as_bytes()) {
            write_atomically(&ca, bootstrap.ca.as_bytes(), 0o644).context("writing ca.crt")?;
        }
        let identity = Self {
            home: home.clone(),
            bootstrap: Arc::new(bootstrap.clone()),
            key: Arc::new(key),
            root,
            address: address.to_owned(),
            clock: ClusterClock::default(),
            renew_before: 1.0 / 3.0 + f64::from(pki::random::<1>()[0]) / 255.0 / 10.0,
            current: watch::Sender::new(None),
        };
        identity.clock.has_passed(bootstrap.made_at);
        let known = fs::read_to_string(identity.home.identity("time")).ok().and_then(|text| text.trim().parse().ok());
        identity.clock.has_passed(known.unwrap_or(0));
        if let Ok(chain) = pki::load_chain(&home.identity("node.crt"))
            && !chain.is_empty()
        {
            identity.set(chain);
        }
        Ok(identity)
    }

    fn set(&self, chain: Vec<CertificateDer<'static>>) {
        self.current.send_replace(Some(Identity { chain, key: pki::private_key(&self.key) }));
    }

    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    pub fn current(&self) -> Option<Identity> {
        self.current.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<Option<Identity>> {
        self.current.subscribe()
    }

    pub fn clock(&self) -> &ClusterClock {
        &self.clock
    }

    /// Takes the head's word for the time, and remembers that it has come to that.
    pub fn take_time(&self, now: i64) {
        self.clock.set(now);
        let known = self.clock.floor();
        self.clock.has_passed(now);
        if now.saturating_sub(known) >= TIME_STEP
            && let Err(error) = write_atomically(&self.home.identity("time"), now.to_string().as_bytes(), 0o600)
        {
            tracing::warn!("cannot remember the time: {error}");
        }
    }

    /// Milliseconds until the certificate should be renewed (a good third of its life is left), and until it is worth
    /// nothing.
    pub fn remaining(&self) -> Option<(i64, i64)> {
        let identity = self.current.borrow();
        let (begins, ends) = pki::validity(identity.as_ref()?.chain.first()?).ok()?;
        // What was backdated is no part of its life.
        let life = (ends - begins - pki::BACKDATE.as_secs() as i64).max(0);
        let left = ends * 1_000 - self.clock.now();
        Some((left - (life as f64 * 1_000.0 * self.renew_before) as i64, left))
    }

    /// Whether there is a certificate that still holds.
    pub fn is_valid(&self) -> bool {
        self.remaining().is_some_and(|(_, ends)| ends > 0)
    }

    pub fn request(&self) -> anyhow::Result<Vec<u8>> {
        Ok(pki::certificate_request(&self.key)?)
    }

    /// Takes a chain that the head gave.
    pub fn take(&self, chain: Vec<CertificateDer<'static>>) -> anyhow::Result<()> {
        if chain.is_empty() {
            bail!("the head gave an empty chain");
        }
        pki::save_chain(&chain, &self.home.identity("node.crt"))?;
        self.set(chain);
        Ok(())
    }

    /// Joins once: with the token, or, if this key has joined before, by the key alone.
    pub async fn join(&self) -> anyhow::Result<()> {
        let bootstrap = &self.bootstrap;
        let config = tls::node_client_config(&self.root, None, &self.clock)?;
        let name = tls::server_name(&pki::head_name(&bootstrap.cluster));
        let channel = transport::dial(&bootstrap.head, bootstrap.address.as_ref().and_then(|a| a.parse().ok()), &name, config)
            .await
            .with_context(|| format!("reaching {}", bootstrap.head))?;
        let request = wire::JoinRequest {
            protocol_version: PROTOCOL_VERSION,
            node: bootstrap.node.to_string(),
            generation: bootstrap.generation.0,
            token: bootstrap.token.clone(),
            certificate_request: self.request()?.into(),
            address: self.address.clone(),
            agent_version: VERSION.to_owned(),
        };
        let mut request = tonic::Request::new(request);
        request.set_timeout(Duration::from_secs(10));
        let reply = JoinClient::new(channel).join(request).await.map_err(|s| anyhow::anyhow!("the head refuses: {}", s.message()))?;
        self.take(reply.into_inner().chain.into_iter().map(|c| CertificateDer::from(c.to_vec())).collect())?;
        self.forget_token()
    }

    /// The token has served; the key is what counts from now on.
    fn forget_token(&self) -> anyhow::Result<()> {
        let path = self.home.bootstrap();
        let mut stored: Bootstrap = serde_json::from_slice(&fs::read(&path)?)?;
        if !stored.token.is_empty() {
            stored.token.clear();
            write_atomically(&path, &serde_json::to_vec(&stored)?, 0o600).context("removing the token")?;
        }
        Ok(())
    }
}
