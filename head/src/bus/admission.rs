//! Who may ask to join. Whoever has neither the token of a node nor a key that joined before is refused here: strangers can call
//! as often as they like, and the brain's queue is not theirs to fill.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use cloudtik_model::node::NodeRecord;
use cloudtik_model::{Generation, NodeId};
use cloudtik_protocol::pki;

use crate::settings::Settings;

/// A cheap handle.
#[derive(Clone)]
pub struct Admission(Arc<Inner>);

struct Inner {
    join_secret: Vec<u8>,
    head: (Generation, String),
    /// Of each node that joined, the last generation and its key.
    joined: Mutex<BTreeMap<NodeId, (Generation, String)>>,
}

impl Admission {
    /// From what the store holds of the nodes.
    pub fn new<'a>(settings: &Settings, join_secret: Vec<u8>, nodes: impl IntoIterator<Item = &'a NodeRecord>) -> Self {
        Self::with((settings.generation, settings.head_token_sha256.clone()), join_secret, nodes)
    }

    fn with<'a>(head: (Generation, String), join_secret: Vec<u8>, nodes: impl IntoIterator<Item = &'a NodeRecord>) -> Self {
        let joined = nodes.into_iter().filter_map(|node| Some((node.id.clone(), (node.generation, node.key.clone()?)))).collect();
        Self(Arc::new(Inner { join_secret, head, joined: Mutex::new(joined) }))
    }

    fn joined(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, (Generation, String)>> {
        self.0.joined.lock().expect("nothing panics while holding the lock")
    }

    /// Whether a node's one generation may ask with this token.
    pub fn is_token(&self, node: &NodeId, generation: Generation, token: &str) -> bool {
        if token.is_empty() {
            return false;
        }
        if node.is_head() {
            let (of, digest) = &self.0.head;
            return generation == *of && pki::secrets_match(&pki::sha256_hex(token.as_bytes()), digest);
        }
        pki::secrets_match(token, &pki::join_token(&self.0.join_secret, node, generation))
    }

    /// Whether this key has joined before: an agent forgets its token once it has served.
    pub fn has_joined(&self, node: &NodeId, generation: Generation, key: &str) -> bool {
        self.joined().get(node).is_some_and(|(of, known)| *of == generation && known == key)
    }

    /// Notes the key of a node that was let in.
    pub fn note(&self, node: NodeId, generation: Generation, key: String) {
        self.joined().insert(node, (generation, key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloudtik_model::{NodeTypeName, Timestamp};

    fn id(text: &str) -> NodeId {
        NodeId::new(text).expect("valid")
    }

    #[test]
    fn a_token_or_a_key_that_joined_is_needed() {
        let kind = NodeTypeName::new("default").expect("valid");
        let known = NodeRecord { key: Some("key".to_owned()), ..NodeRecord::requested(id("w1"), Generation(2), kind, Timestamp(0)) };
        let admission = Admission::with((Generation(1), pki::sha256_hex(b"of the head")), b"secret".to_vec(), [&known]);
        let token = pki::join_token(b"secret", &id("w2"), Generation(1));
        assert!(admission.is_token(&id("w2"), Generation(1), &token) && admission.is_token(&NodeId::head(), Generation(1), "of the head"));
        for (node, generation, token) in
            [("w2", 2, token.as_str()), ("w1", 1, &token), ("w2", 1, ""), ("head", 2, "of the head"), ("head", 1, &token)]
        {
            assert!(!admission.is_token(&id(node), Generation(generation), token), "{node} {generation} {token}");
        }
        assert!(admission.has_joined(&id("w1"), Generation(2), "key"));
        for (node, generation, key) in [("w1", 1, "key"), ("w1", 2, "other"), ("w2", 1, "key")] {
            assert!(!admission.has_joined(&id(node), Generation(generation), key), "{node} {generation} {key}");
        }
        admission.note(id("w2"), Generation(1), "other".to_owned());
        assert!(admission.has_joined(&id("w2"), Generation(1), "other"));
    }
}
