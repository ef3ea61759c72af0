//! The one contract of every provider, on those that can run here.

use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::{ClusterName, Generation, NodeId, NodeTypeName};
use cloudtik_providers::local::{LocalProvider, Settings};
use cloudtik_providers::{CreateNode, NodeProvider, conformance};
use cloudtik_tests::programs;

#[tokio::test]
async fn the_local_provider_keeps_the_contract() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let nodes = directory.path().join("nodes");
    let settings = Settings { nodes, network: [127, 250, 77], agent: programs().join("cloudtik-agent") };
    let provider = LocalProvider::new(settings);
    let ca = {
        let cluster = ClusterName::new("contract").expect("valid");
        cloudtik_protocol::pki::Root::generate(&cluster).expect("makes").certificate_pem()
    };
    let request = |node: &NodeId, generation: Generation| {
        let node_type = NodeTypeName::new(NodeTypeName::DEFAULT).expect("valid");
        let bootstrap = Bootstrap {
            cluster: ClusterName::new("contract").expect("valid"),
            node: node.clone(),
            generation,
            node_type: node_type.clone(),
            // Nobody is there: the agents run, and go on trying.
            head: "127.250.77.1:9".to_owned(),
            ca: ca.clone(),
            token: "token".to_owned(),
            address: None,
            resources: None,
            pinned: Vec::new(),
            artifacts: None,
            heartbeat_ms: 1_000,
            dead_man_ms: None,
            power_off: Vec::new(),
            made_at: 0,
        };
        CreateNode { node_type, offer: Default::default(), bootstrap }
    };
    conformance::check(&provider, request).await;
    assert!(provider.capabilities().restart_agent);
}
