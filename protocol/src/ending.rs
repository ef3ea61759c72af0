//! Answers that end with a status when something happens, whatever else they would still carry.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};
use tonic::Status;

/// The body of a gRPC answer that ends as soon as `end` gives a status. What is left of the inner body is dropped, so that
/// whoever writes to it notices.
pub struct Ending<B> {
    /// Absent after the end.
    inner: Option<Pin<Box<B>>>,
    end: Pin<Box<dyn Future<Output = Status> + Send>>,
}

impl<B> Ending<B> {
    pub fn new(inner: B, end: impl Future<Output = Status> + Send + 'static) -> Self {
        Self { inner: Some(Box::pin(inner)), end: Box::pin(end) }
    }
}

impl<B: Body<Data = Bytes>> Body for Ending<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        if let Poll::Ready(status) = this.end.as_mut().poll(context) {
            this.inner = None;
            let mut trailers = HeaderMap::new();
            // A status whose message does not fit into a header still ends the answer.
            if status.add_header(&mut trailers).is_err() {
                let _ = Status::new(status.code(), "").add_header(&mut trailers);
            }
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        inner.as_mut().poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(|inner| inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    /// A body of what is sent to it.
    struct Sent(mpsc::Receiver<Bytes>);

    impl Body for Sent {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    async fn next(body: &mut Ending<Sent>) -> Option<Frame<Bytes>> {
        std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await.map(|frame| frame.expect("infallible"))
    }

    #[tokio::test]
    async fn an_answer_ends_with_the_status_and_lets_go_of_what_it_carried() {
        let (sender, receiver) = mpsc::channel(4);
        let (end, ended) = oneshot::channel();
        let mut body = Ending::new(Sent(receiver), async { ended.await.expect("is told") });
        sender.send(Bytes::from_static(b"first")).await.expect("there is room");
        assert_eq!(next(&mut body).await.and_then(|frame| frame.into_data().ok()), Some(Bytes::from_static(b"first")));
        sender.send(Bytes::from_static(b"too late")).await.expect("there is room");
        end.send(Status::permission_denied("revoked")).expect("is listened to");
        let trailers = next(&mut body).await.and_then(|frame| frame.into_trailers().ok()).expect("the status");
        assert_eq!(trailers.get("grpc-status").and_then(|v| v.to_str().ok()), Some("7"));
        assert_eq!(trailers.get("grpc-message").and_then(|v| v.to_str().ok()), Some("revoked"));
        assert!(next(&mut body).await.is_none() && sender.is_closed());
    }
}
