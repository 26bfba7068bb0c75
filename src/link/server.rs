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
use super::message::{Refusal, Reply, Request};
use super::record::{Inbox, Outbox};
use super::{BULK_BYTES, Lane, LinkConfig};
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
    /// None is sent: the request was told, not asked; see [`Pool::tell`](super::Pool::tell).
    Never,
}

/// The request that an answer belongs to.
#[derive(Clone, Copy)]
struct Asked {
    id: u32,
    /// It may be asked again on the bulk connection.
    is_repeatable: bool,
}

/// A request and its answer; none if the deadline passed first, when nobody waits for one any more.
type Finished = (Asked, Option<(Reply, Vec<Bytes>)>);

/// Serves one upgraded connection, whose asking end has proved itself, until it closes. `early` is what arrived together
/// with the upgrade request; `lane` tells whether long answers belong here, `taken` is the longest frame that the peer takes;
/// `seals` are what the proofs led to.
///
/// # Errors
/// A sentence saying why the connection was closed, if the peer violated the protocol or vanished in mid-frame.
pub async fn serve<S>(
    mut stream: S,
    early: &[u8],
    (lane, taken): (Lane, usize),
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
    let mut connection = Serving { service, lane, taken, later, waiting: 0, sealer, out };
    let mut buffer = BytesMut::with_capacity(16 << 10);
    buffer.extend_from_slice(early);
    loop {
        while connection.serve_some(&mut buffer, &mut inbox).map_err(|error| error.to_string())? {
            connection.flush(&mut stream, metrics).await?;
        }
        while let Ok(one) = finished.try_recv() {
            connection.finish(one);
            if connection.out.len() >= OUT_BYTES_MAX {
                connection.flush(&mut stream, metrics).await?;
            }
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
    lane: Lane,
    taken: usize,
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
        let asked = Asked { id, is_repeatable: head.is_repeatable() };
        match self.service.call(head, value, deadline) {
            Answer::Now(reply, values) => self.answer(asked, &reply, &values),
            Answer::Never => {}
            Answer::Later(_) if self.waiting >= LATER_MAX => {
                self.answer(asked, &Reply::Refused(Refusal::Overloaded), &[]);
            }
            Answer::Later(reply) => {
                self.waiting += 1;
                let later = self.later.clone();
                spawn_vital("link", async move {
                    let answer = timeout_at(deadline, reply).await.ok();
                    // Fails when the connection is gone, and with it whoever asked.
                    let _ = later.send((asked, answer)).await;
                });
            }
        }
    }

    fn finish(&mut self, (asked, answer): Finished) {
        self.waiting -= 1;
        if let Some((reply, values)) = answer {
            self.answer(asked, &reply, &values);
        }
    }

    fn answer(&mut self, Asked { id, is_repeatable }: Asked, reply: &Reply, values: &[Bytes]) {
        let may_ask_again = self.lane == Lane::Requests && is_repeatable;
        let bytes_max = if may_ask_again { BULK_BYTES } else { self.taken };
        if self.out.push(id, 0, reply, values, bytes_max) {
            return;
        }
        let instead = if may_ask_again {
            Reply::AskBulk
        } else {
            let reason =
                format!("the answer is longer than {} bytes, which the asking node takes", self.taken);
            Reply::Refused(Refusal::TooLarge(reason))
        };
        self.out.push(id, 0, &instead, &[], self.taken);
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
