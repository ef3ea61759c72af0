//! Who may join and connect as a node: one key for a generation, by its token the first time; one connection at a time.

use cloudtik_model::event::What;
use cloudtik_model::node::NodeState;
use cloudtik_model::reason::Reason;
use cloudtik_model::refusal::{CloseCause, Refusal};
use cloudtik_model::report::Facts;
use cloudtik_model::{Actor, Generation, NodeId, Resources};

use crate::{Action, Brain, Node, Reply, Request, Session};

/// A clock that is wrong by so many seconds more or less than before is worth a word.
const CLOCK_NEWS: u64 = 60;

impl Brain {
    /// The node of a generation, if the cluster has it.
    fn member(&self, id: &NodeId, generation: Generation) -> Result<&Node, Refusal> {
        let node = self.nodes.get(id).ok_or(Refusal::NotAMember)?;
        let current = node.record.generation;
        if current == generation { Ok(node) } else { Err(Refusal::OtherGeneration { node: id.clone(), generation, current }) }
    }

    pub(crate) fn take_join(
        &mut self,
        request: Request,
        id: NodeId,
        generation: Generation,
        key: String,
        token: bool,
        address: String,
    ) -> Option<NodeId> {
        let refusal = match self.member(&id, generation) {
            Err(refusal) => Some(refusal),
            Ok(n) if n.record.life.is_leaving() => Some(Refusal::AlreadyInState { node: id.clone(), state: n.record.life.name() }),
            Ok(n) => match &n.record.key {
                // The key that joined before proves itself by the request's signature: a certificate that ran out, or an
                // answer that was lost, costs the node nothing.
                Some(known) if *known == key => None,
                Some(_) => Some(Refusal::KeyAlreadyUsed),
                None if !token => Some(Refusal::WrongToken),
                None => None,
            },
        };
        if let Some(refusal) = refusal {
            let what = What::JoinRefused { claimed: id.clone(), of: generation, address, refusal: refusal.clone() };
            self.refuse(&request.actor, &id, what);
            self.reply(request, Err(refusal));
            return None;
        }
        let node = self.nodes.get_mut(&id)?;
        // What goes into the certificate is the provider's word, not the caller's; it comes in a moment.
        let Some(address) = node.record.address.clone() else {
            self.reply(request, Err(Refusal::LaunchNotConfirmed { node: id }));
            return None;
        };
        if node.record.key.is_none() {
            node.record.key = Some(key);
            if matches!(node.record.life, NodeState::Requested | NodeState::Launched) {
                self.enter(&id, NodeState::Joined, Reason::JoinTokenValid);
            } else {
                self.store_node(&id);
            }
        }
        self.reply(request, Ok(Reply::Admit { node: id.clone(), generation, address }));
        Some(id)
    }

    pub(crate) fn take_link(&mut self, session: Session, id: NodeId, generation: Generation, facts: Facts) -> Option<NodeId> {
        let refusal = match self.member(&id, generation) {
            Err(refusal) => Some(refusal),
            Ok(n) if matches!(n.record.life, NodeState::Terminating { .. } | NodeState::Gone | NodeState::Failed { .. }) => {
                Some(Refusal::AlreadyInState { node: id.clone(), state: n.record.life.name() })
            }
            Ok(_) => None,
        };
        if let Some(refusal) = refusal {
            let what = What::ConnectionRefused { claimed: id.clone(), of: generation, refusal: refusal.clone() };
            self.refuse(&Actor::Agent { node: id.clone() }, &id, what);
            self.act(Action::CloseLink { session, cause: CloseCause::Refused { refusal } });
            return None;
        }
        let now = self.clock.now();
        let node = self.nodes.get_mut(&id)?;
        let older = node.link.replace(session);
        let offset = facts.clock_offset_s;
        let is_news = node.facts.as_ref().map_or(0, |f| f.clock_offset_s).abs_diff(offset) > CLOCK_NEWS;
        let port = Some(facts.health_port);
        let moved = std::mem::replace(&mut node.record.health_port, port) != port;
        let offers = Resources { cpus: facts.cpus, memory: facts.memory, gpus: facts.gpus };
        let found = node.record.found.replace(offers) != Some(offers);
        node.facts = Some(facts);
        node.goal.clear_sent();
        node.watch.heard(now);
        self.nodes.last_errors.remove(&id);
        self.touch(&id);
        if moved || found {
            self.store_node(&id);
        }
        if !id.is_head() {
            self.learn(&id, offers);
        }
        if is_news {
            self.event(Some(&id), What::ClockOff { behind_s: offset });
        }
        if let Some(older) = older {
            self.act(Action::CloseLink { session: older, cause: CloseCause::NewerConnection });
        }
        if matches!(self.nodes[&id].record.life, NodeState::Requested | NodeState::Launched | NodeState::Joined) {
            self.enter(&id, NodeState::Preparing, Reason::AgentConnected);
        }
        Some(id)
    }
}
