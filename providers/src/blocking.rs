//! Work of a provider that blocks, on threads of its own.

use crate::Error;

/// Does one thing.
pub async fn blocking<P: Clone + Send + 'static, T: Send + 'static>(
    provider: &P,
    work: impl FnOnce(&P) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let provider = provider.clone();
    tokio::task::spawn_blocking(move || work(&provider)).await.map_err(|e| Error::transient("run an operation", e))?
}

/// Works on all items at once, each on a thread of its own; the answers are in the order of the items.
pub async fn each<P: Clone + Send + 'static, R: Clone + Send + 'static, T: Send + 'static>(
    provider: &P,
    requests: &[R],
    work: fn(&P, &R) -> Result<T, Error>,
) -> Vec<Result<T, Error>> {
    let begin = |request: &R| {
        let (provider, request) = (provider.clone(), request.clone());
        tokio::task::spawn_blocking(move || work(&provider, &request))
    };
    let begun: Vec<_> = requests.iter().map(begin).collect();
    let mut answers = Vec::with_capacity(begun.len());
    for item in begun {
        answers.push(item.await.unwrap_or_else(|error| Err(Error::transient("run an operation", error))));
    }
    answers
}
