//! Calls of the provider for several nodes at once: how requests are divided into calls, and the brain's input for each.

use std::sync::Arc;

use cloudtik_brain::Input;
use cloudtik_providers::{CreateNode, DeleteNode, Error, NodeProvider};

use super::{CALL_DEADLINE, failure, no_answer};

/// Divides requests into calls of at most `size` items, in their order.
pub fn split<R: Clone>(requests: &[R], size: usize) -> Vec<Vec<R>> {
    requests.chunks(size.max(1)).map(<[R]>::to_vec).collect()
}

/// Creates nodes by one call: for each whether it worked, and the brain's input.
pub async fn create(provider: Arc<dyn NodeProvider>, requests: Vec<CreateNode>) -> Vec<(bool, Input)> {
    let results = in_time(requests.len(), provider.create(&requests)).await;
    let answer = |(request, result): (CreateNode, Result<_, Error>)| {
        let (node, generation) = (request.bootstrap.node, request.bootstrap.generation);
        (result.is_ok(), Input::Created { node, generation, result: result.map_err(failure) })
    };
    requests.into_iter().zip(results).map(answer).collect()
}

/// Deletes nodes by one call: for each whether it worked, and the brain's input.
pub async fn delete(provider: Arc<dyn NodeProvider>, requests: Vec<DeleteNode>) -> Vec<(bool, Input)> {
    let results = in_time(requests.len(), provider.delete(&requests)).await;
    let answer = |(request, result): (DeleteNode, Result<_, Error>)| {
        let DeleteNode { node, generation, instance } = request;
        (result.is_ok(), Input::Deleted { node, generation, instance, result: result.map_err(failure) })
    };
    requests.into_iter().zip(results).map(answer).collect()
}

/// As many results as items. An item without an answer may yet have its effect.
async fn in_time<T>(items: usize, call: impl Future<Output = Vec<Result<T, Error>>>) -> Vec<Result<T, Error>> {
    match tokio::time::timeout(CALL_DEADLINE, call).await {
        Ok(mut results) => {
            results.resize_with(items.max(results.len()), || Err(Error::unanswered()));
            results
        }
        Err(_) => (0..items).map(|_| Err(no_answer())).collect(),
    }
}

#[cfg(test)]
mod tests;
