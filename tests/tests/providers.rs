//! The one contract of every provider, on those that can run here.

use cloudtik_model::{ClusterName, Generation, NodeId};
use cloudtik_providers::NodeProvider;
use cloudtik_providers::conformance::{self, Checked, check};
use cloudtik_providers::local::{LocalProvider, Settings};
use cloudtik_tests::programs;

#[tokio::test]
async fn the_local_provider_keeps_the_contract() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let nodes = directory.path().join("nodes");
    let settings = Settings { nodes, network: [127, 250, 77], agent: programs().join("cloudtik-agent"), head: None };
    let provider = LocalProvider::new(settings);
    let ca = {
        let cluster = ClusterName::new("contract").expect("valid");
        cloudtik_protocol::pki::Root::generate(&cluster).expect("makes").certificate_pem()
    };
    // No head is there: the agents run, and go on trying.
    let request = |node: &NodeId, generation: Generation| conformance::request(node, generation, "127.250.77.1:9", &ca);
    let checked = Checked { provider: &provider, request: &request, many: 6, hold: None };
    check(&checked, &mut |_| {}).await.expect("keeps the contract");
    assert!(provider.capabilities().restart_agent);
}
