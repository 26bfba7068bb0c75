//! Bodies of requests and answers, within bounds of length, of time, and of memory for all of them.
//!
//! Invariant: nothing is kept of a body that is too long, and no memory is set aside for what was only announced. What is
//! long counts until the last one lets go of it: a request's until it is done, an answer's until it is sent.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::Body;
use hyper::header::CONTENT_LENGTH;

use super::error::ApiError;
use super::limits::{Arrivals, Gauge, Held, counted};
use crate::telemetry::{Limit, Metrics};

/// What is no longer counts only while it arrives, apart from what is long: the number of requests bounds the rest.
const SHORT_BYTES: usize = 16 << 10;

/// How much longer than accepted a body may be to be read to its end.
fn patience(bytes_max: usize) -> usize {
    bytes_max.saturating_mul(4)
}

/// The bodies that this node has in hand: those of requests, or of answers.
pub(super) struct Bodies {
    timeout: Duration,
    memory: Arc<Gauge>,
    memory_bytes_max: usize,
    arrivals: Arrivals,
    metrics: Arc<Metrics>,
}

impl Bodies {
    pub(super) fn new(
        timeout: Duration,
        memory_bytes_max: usize,
        arrivals: Arrivals,
        metrics: Arc<Metrics>,
    ) -> Bodies {
        Bodies { timeout, memory: Arc::default(), memory_bytes_max, arrivals, metrics }
    }

    /// The same bytes, counted for as long as anybody has them.
    ///
    /// # Errors
    /// 503 if all bodies together are too long.
    pub(super) fn keep(&self, bytes: Bytes) -> Result<Bytes, ApiError> {
        match self.hold(bytes.len())? {
            Some(held) => Ok(counted(bytes, held)),
            None => Ok(bytes),
        }
    }

    /// Counts as many bytes until the guard is dropped; there is none for a few.
    ///
    /// # Errors
    /// 503 if all bodies together are too long.
    pub(super) fn hold(&self, bytes: usize) -> Result<Option<Held<Arc<Gauge>>>, ApiError> {
        if bytes <= SHORT_BYTES {
            return Ok(None);
        }
        let held = Held::new(self.memory.clone(), bytes, self.memory_bytes_max);
        held.map(Some).ok_or_else(|| self.full())
    }

    fn full(&self) -> ApiError {
        self.metrics.refuse(Limit::BodyMemory);
        ApiError::overloaded("too many long bodies are arriving or being sent")
    }

    /// Reads a body of at most `bytes_max`. One that is a little too long is read to its end, so that the client is there to read the error; a
    /// hopeless one is refused at once.
    ///
    /// # Errors
    /// 413 if it is too long, 408 if it is too slow, 503 if all bodies together are too long, 400 if it breaks off.
    pub(super) async fn read<B>(
        &self,
        headers: &HeaderMap,
        body: B,
        bytes_max: usize,
    ) -> Result<Bytes, ApiError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: fmt::Display,
    {
        let announced =
            headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if let Some(bytes) = announced.filter(|bytes| *bytes > patience(bytes_max)) {
            return Err(self.too_long(bytes, bytes_max));
        }
        // Most bodies are there already: then no clock is asked.
        let mut reading = std::pin::pin!(self.collect(announced, body, bytes_max));
        if let Some(read) = (&mut reading).now_or_never() {
            return read;
        }
        tokio::time::timeout(self.timeout, reading).await.unwrap_or_else(|_| {
            self.metrics.refuse(Limit::BodyTime);
            Err(ApiError::timeout("the body of the request"))
        })
    }

    fn too_long(&self, bytes: usize, bytes_max: usize) -> ApiError {
        self.metrics.refuse(Limit::BodySize);
        too_long(bytes, bytes_max)
    }

    async fn collect<B>(
        &self,
        announced: Option<usize>,
        mut body: B,
        bytes_max: usize,
    ) -> Result<Bytes, ApiError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: fmt::Display,
    {
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        let mut bytes = 0;
        let (mut held, mut arriving) = (None, None);
        while let Some(frame) = body.frame().await {
            let frame = frame
                .map_err(|error| ApiError::invalid(format!("the body did not arrive whole: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            bytes += data.len();
            if bytes > patience(bytes_max) {
                break;
            }
            if bytes > bytes_max {
                (first, rest, held, arriving) = (None, BytesMut::new(), None, None);
                continue;
            }
            self.hold_more(&mut held, bytes)?;
            if held.is_some() {
                arriving = None;
            } else if !body.is_end_stream() && !self.arrivals.count(&mut arriving, bytes) {
                return Err(self.full());
            }
            if rest.is_empty() && first.is_none() {
                first = Some(data);
                continue;
            }
            if let Some(start) = first.take() {
                // As long as was announced if that is short; else it grows by what has arrived, for that may be a lie.
                rest.reserve(announced.filter(|all| *all <= SHORT_BYTES).unwrap_or(start.len() + data.len()));
                rest.extend_from_slice(&start);
            }
            rest.extend_from_slice(&data);
        }
        if bytes > bytes_max {
            return Err(self.too_long(announced.unwrap_or(bytes), bytes_max));
        }
        let whole = if rest.is_empty() { first.unwrap_or_default() } else { rest.freeze() };
        Ok(match held {
            Some(held) => counted(whole, held),
            None => whole,
        })
    }

    /// Counts what has arrived of a body, `bytes` by now.
    fn hold_more(&self, held: &mut Option<Held<Arc<Gauge>>>, bytes: usize) -> Result<(), ApiError> {
        match held {
            Some(held) => held.grow_to(bytes, self.memory_bytes_max).then_some(()).ok_or_else(|| self.full()),
            None => {
                *held = self.hold(bytes)?;
                Ok(())
            }
        }
    }
}

pub(super) fn too_long(bytes: usize, bytes_max: usize) -> ApiError {
    ApiError::too_large(format!("{bytes} bytes, at most {bytes_max} are accepted here"))
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    use super::*;
    use crate::model::NodeId;

    const LONG: usize = 20 << 10;

    fn bodies() -> Bodies {
        let metrics = Metrics::new(&NodeId::parse("test").unwrap());
        Bodies::new(Duration::from_secs(1), 2 * LONG, Arrivals::new(LONG), metrics)
    }

    async fn read<B>(bodies: &Bodies, body: B) -> Result<Bytes, ApiError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: fmt::Display,
    {
        bodies.read(&HeaderMap::new(), body, 10 * LONG).await
    }

    #[tokio::test]
    async fn a_short_body_counts_only_while_it_arrives() {
        let bodies = bodies();
        let piece = |bytes: usize| Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![1; bytes])));
        let slow = || {
            let begun = futures_util::stream::iter([piece(12 << 10)]);
            StreamBody::new(begun.chain(futures_util::stream::pending()))
        };
        let mut first = Box::pin(read(&bodies, slow()));
        assert!((&mut first).now_or_never().is_none(), "it waits for the rest");
        assert_eq!(read(&bodies, slow()).await.unwrap_err().code, "overloaded");
        let whole = read(&bodies, Full::new(Bytes::from(vec![1; 12 << 10]))).await;
        assert!(whole.is_ok(), "what is here is whole");
        drop(first);
        assert!(read(&bodies, slow()).now_or_never().is_none(), "there is room again");
    }

    #[tokio::test]
    async fn what_is_long_counts_until_the_last_one_lets_go_of_it() {
        let bodies = bodies();
        let whole = || Full::new(Bytes::from(vec![1; LONG]));
        let pieces = || {
            let piece = || Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![1; LONG / 4])));
            StreamBody::new(futures_util::stream::iter([piece(), piece(), piece(), piece()]))
        };
        let [first, second] = [read(&bodies, whole()).await.unwrap(), read(&bodies, pieces()).await.unwrap()];
        assert_eq!(first, second);
        for refused in
            [read(&bodies, whole()).await, read(&bodies, pieces()).await, bodies.keep(first.clone())]
        {
            assert_eq!(refused.unwrap_err().code, "overloaded");
        }
        assert!(bodies.keep(Bytes::from(vec![1; SHORT_BYTES])).is_ok(), "short ones always fit");
        let part = second.slice(..1);
        drop(second);
        assert!(bodies.hold(LONG).is_err(), "a part keeps the whole");
        drop(part);
        let held = bodies.hold(LONG).unwrap();
        assert!(held.is_some() && bodies.hold(LONG).is_err());
        drop((first, held));
        assert!(bodies.hold(2 * LONG).is_ok());
    }
}
