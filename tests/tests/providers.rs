//! The one contract of every provider, on those that can run here.

use cloudtik_model::{ClusterName, Generation, NodeId};
use cloudtik_providers::NodeProvider;
use cloudtik_providers::conformance::{self, Checked, Hold, MountBelow, check};
use cloudtik_providers::local::{LocalProvider, Settings};
use cloudtik_tests::{programs, skipped};

#[tokio::test]
async fn the_local_provider_keeps_the_contract() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let nodes = directory.path().join("nodes");
    let hold = MountBelow::new(&nodes);
    if hold.is_none() {
        skipped("instances that are in use need the right to mount (root)");
    }
    let settings = Settings { nodes, network: [127, 250, 77], agent: programs().join("cloudtik-agent"), head: None };
    let provider = LocalProvider::new(settings);
    let ca = {
        let cluster = ClusterName::new("contract").expect("valid");
        cloudtik_protocol::pki::Root::generate(&cluster).expect("makes").certificate_pem()
    };
    // No head is there: the agents run, and go on trying.
    let request = |node: &NodeId, generation: Generation| conformance::request(node, generation, "127.250.77.1:9", &ca);
    let checked = Checked { provider: &provider, request: &request, many: 6, hold: hold.as_ref().map(|hold| hold as &dyn Hold) };
    check(&checked, &mut |_| {}).await.expect("keeps the contract");
    assert!(provider.capabilities().restart_agent);
}
