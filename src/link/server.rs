//! The answering end of a link.
//!
//! One task reads frames, has them served, and writes all answers of one read in one call. While it writes it does not
//! read: a peer that does not take its answers is not given more work.

use std::future::Future;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::frame::{Frame, FrameError};
use super::handshake::Seals;
use super::message::{Outcome, Refusal, Reply, Request};
use super::record::{Inbox, Outbox};
use super::{BULK_BYTES, LinkConfig};
use crate::net::spawn_vital;
use crate::security::Sealer;
use crate::telemetry::Metrics;

/// Requests of one connection that may be waiting for something at a time.
const LATER_MAX: usize = 1024;
/// How long a peer may leave its answers untaken.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of answers after which they are written before more is served.
const OUT_BYTES_MAX: usize = 1 << 20;

/// What serves the requests of peers.
pub trait Service: Send + Sync + 'static {
    /// Serves or refuses one request, without sending it on. `value` holds the raw values, in order. Nobody waits for the
    /// answer after `deadline`.
    fn call(&self, request: Request, value: Bytes, deadline: Instant) -> Answer;
}

/// A reply with its raw values, now or later.
pub enum Answer {
    /// Served without waiting.
    Now(Reply, Vec<Bytes>),
    /// Has to wait for something; other requests of the connection go on.
    Later(Pin<Box<dyn Future<Output = (Reply, Vec<Bytes>)> + Send>>),
}

/// An id and its answer; none if the deadline passed first, when nobody waits for one any more.
type Finished = (u32, Option<(Reply, Vec<Bytes>)>);

/// Serves one upgraded connection, whose asking end has proved itself, until it closes. `early` is what arrived together
/// with the upgrade request; `bulk` tells that long answers belong here; `seals` are what the proofs led to.
///
/// # Errors
/// A sentence saying why the connection was closed, if the peer violated the protocol or vanished in mid-frame.
pub async fn serve<S>(
    mut stream: S,
    early: &[u8],
    bulk: bool,
    service: Arc<dyn Service>,
    seals: Seals,
    config: &LinkConfig,
    metrics: &Metrics,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (later, mut finished) = mpsc::channel(LATER_MAX);
    let (sealer, opener) = seals.unzip();
    let mut inbox = Inbox::new(opener, config.frame_bytes_max());
    let out = Outbox::new(sealer.is_some());
    let mut connection = Serving { service, bulk, later, waiting: 0, sealer, out };
    let mut buffer = BytesMut::with_capacity(16 << 10);
    buffer.extend_from_slice(early);
    loop {
        while connection.serve_some(&mut buffer, &mut inbox).map_err(|error| error.to_string())? {
            connection.flush(&mut stream, metrics).await?;
        }
        while let Ok(one) = finished.try_recv() {
            connection.finish(one);
        }
        connection.flush(&mut stream, metrics).await?;
        buffer.reserve(4 << 10);
        tokio::select! {
            biased;
            read = stream.read_buf(&mut buffer) => match read {
                Ok(0) if buffer.is_empty() => return Ok(()),
                Ok(0) => return Err("the peer closed the connection within a frame".into()),
                Ok(bytes) => metrics.link_received_bytes.inc_by(bytes as u64),
                // Under TLS, a connection that was dropped without a word; there is none to say between frames.
                Err(error) if buffer.is_empty() && error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error.to_string()),
            },
            Some(one) = finished.recv() => connection.finish(one),
        }
    }
}

struct Serving {
    service: Arc<dyn Service>,
    bulk: bool,
    later: mpsc::Sender<Finished>,
    waiting: usize,
    sealer: Option<Sealer>,
    out: Outbox,
}

impl Serving {
    /// Serves the whole frames in `buffer`. True if it stopped before the last because enough is to be written.
    fn serve_some(&mut self, buffer: &mut BytesMut, inbox: &mut Inbox) -> Result<bool, FrameError> {
        while let Some(request) = inbox.next::<Request>(buffer)? {
            self.serve_one(request);
            if self.out.len() >= OUT_BYTES_MAX {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn serve_one(&mut self, Frame { id, deadline_ms, head, value }: Frame<Request>) {
        let deadline = Instant::now() + Duration::from_millis(deadline_ms.into());
        match self.service.call(head, value, deadline) {
            Answer::Now(reply, values) => self.answer(id, &reply, &values),
            Answer::Later(_) if self.waiting >= LATER_MAX => {
                self.answer(id, &Reply::Refused(Refusal::Overloaded), &[]);
            }
            Answer::Later(reply) => {
                self.waiting += 1;
                let later = self.later.clone();
                spawn_vital("link", async move {
                    let answer = timeout_at(deadline, reply).await.ok();
                    // Fails when the connection is gone, and with it whoever asked.
                    let _ = later.send((id, answer)).await;
                });
            }
        }
    }

    fn finish(&mut self, (id, answer): Finished) {
        self.waiting -= 1;
        if let Some((reply, values)) = answer {
            self.answer(id, &reply, &values);
        }
    }

    fn answer(&mut self, id: u32, reply: &Reply, values: &[Bytes]) {
        let bulky = !self.bulk && values.iter().map(Bytes::len).sum::<usize>() > BULK_BYTES;
        let (reply, values) = if bulky { (&Reply::AskBulk, &[][..]) } else { (reply, values) };
        if !self.out.push(id, 0, reply, values) {
            let refusal = Refusal::TooLarge("the answer is too long for a frame".into());
            self.out.push(id, 0, &Reply::One(Outcome::Refused(refusal)), &[]);
        }
    }

    async fn flush(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        metrics: &Metrics,
    ) -> Result<(), String> {
        if self.out.is_empty() {
            return Ok(());
        }
        let bytes = self.out.seal(self.sealer.as_mut()).map_err(|error| error.to_string())?;
        metrics.link_sent_bytes.inc_by(bytes.len() as u64);
        let writing = async {
            stream.write_all(bytes).await?;
            // Under TLS, what was written may still wait.
            stream.flush().await
        };
        match timeout(WRITE_TIMEOUT, writing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("the peer took no answers for {} s", WRITE_TIMEOUT.as_secs())),
        }
        self.out.clear();
        Ok(())
    }
}
