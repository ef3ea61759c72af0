//! Which requests another description of the cluster would end, or leave without room.

use cloudtik_model::conflict::{ConflictCause, RequestConflict};
use cloudtik_model::demand::ResourceRequest;
use cloudtik_model::spec::{Spec, WorkerType};
use cloudtik_model::{Moment, NodeTypeName};

use super::RequestTable;
use crate::{Brain, ClusterRecord, Memory};

/// Of the requests that another description leaves no room, at most so many are named.
const MAX_CONFLICTS: usize = 5;
/// Where more requests stand than this, it is not determined which of them are too many.
const MAX_CHECKED: usize = 200;

/// A conflict of one request.
fn conflict(request: String, why: ConflictCause) -> RequestConflict {
    RequestConflict { requests: vec![request], more: 0, why }
}

impl Brain {
    /// The requests that stand, all of which are stored.
    pub fn requests(&self) -> impl Iterator<Item = &ResourceRequest> {
        self.autoscaler.requests.iter()
    }

    /// The requests that another description would end, or leave without room, and why.
    pub fn conflicting_requests(&self, spec: &Spec) -> Vec<RequestConflict> {
        let is_of_type = |request: &&ResourceRequest| request.wants.node_type().is_none_or(|name| spec.workers.contains_key(name));
        let (stay, end): (Vec<&ResourceRequest>, Vec<&ResourceRequest>) = self.autoscaler.requests.iter().partition(is_of_type);
        let mut conflicts: Vec<_> = end.into_iter().map(|request| conflict(request.name.clone(), ConflictCause::TypeRemoved)).collect();
        // What another head would say that knows nothing else.
        let cluster =
            ClusterRecord { spec: Some(spec.clone()), learned: self.autoscaler.stored.learned.clone(), ..ClusterRecord::default() };
        let memory = Memory { cluster, requests: stay.iter().map(|request| (*request).clone()).collect(), ..Memory::default() };
        let moment = Moment { mono: self.clock.monotonic(), wall: self.clock.wall() };
        let other = Self::restore(self.config.clone(), self.epoch, memory, moment);
        let misfit = |request: &&ResourceRequest| {
            Some(conflict(request.name.clone(), ConflictCause::NoLongerFits { why: other.misfit(spec, request)? }))
        };
        conflicts.extend(stay.iter().filter_map(misfit));
        conflicts.extend(other.beyond_types(spec));
        conflicts.extend(other.too_many(spec));
        conflicts
    }

    /// Requests for numbers of which a type's maximum leaves too little, and why.
    fn beyond_types(&self, spec: &Spec) -> Vec<RequestConflict> {
        let of_type = |(name, kind): (&NodeTypeName, &WorkerType)| {
            let wanted = self.raw_base(spec, name);
            let requests = self
                .autoscaler
                .requests
                .numbers()
                .filter(|request| request.wants.node_type() == Some(name))
                .map(|request| request.name.clone())
                .collect();
            let why = ConflictCause::AboveTypeMaximum { node_type: name.clone(), wanted, max: kind.max };
            (wanted > kind.max).then_some(RequestConflict { requests, more: 0, why })
        };
        spec.workers.iter().filter_map(of_type).collect()
    }

    /// Of the requests that stand, those for which there is no room beside those that came before, and why; a few of them.
    fn too_many(mut self, spec: &Spec) -> Vec<RequestConflict> {
        let mut order: Vec<ResourceRequest> = self.autoscaler.requests.iter().cloned().collect();
        order.sort_by_key(|request| request.number);
        let mut conflicts = Vec::new();
        if order.len() > MAX_CHECKED {
            let requests: Vec<String> = order.iter().take(MAX_CONFLICTS).map(|request| request.name.clone()).collect();
            let more = order.len() - requests.len();
            let conflict = |why| RequestConflict { requests, more, why: ConflictCause::NoRoom { why } };
            return self.check_room(spec, None).err().map(conflict).into_iter().collect();
        }
        while conflicts.len() < MAX_CONFLICTS
            && !order.is_empty()
            && let Err(all) = self.check_room(spec, None)
        {
            // The first that does not fit beside those before it.
            let (mut fits, mut fails) = (0, order.len());
            let mut why = all;
            while fits + 1 < fails {
                let middle = fits + (fails - fits) / 2;
                self.autoscaler.requests = RequestTable::new(order[..middle].to_vec());
                match self.check_room(spec, None) {
                    Ok(()) => fits = middle,
                    Err(said) => (fails, why) = (middle, said),
                }
            }
            conflicts.push(conflict(order.remove(fails - 1).name, ConflictCause::NoRoom { why }));
            self.autoscaler.requests = RequestTable::new(order.clone());
        }
        conflicts
    }
}
