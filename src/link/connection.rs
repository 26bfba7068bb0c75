//! One connection to a peer: many requests under way at once, told apart by their ids.
//!
//! Two tasks: one writes whatever has gathered in one call, one reads replies and hands them to whoever waits. Invariant: an
//! id is not used again while a request under it is outstanding, so that a late reply finds nobody and is dropped.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Duration, Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::frame::{Frame, FrameError};
use super::life::Life;
use super::message::{Reply, Request};
use super::party::{Called, Party};
use super::record::{Inbox, Outbox};
use super::upgrade::Upgraded;
use super::{BULK_BYTES, LinkError, OUTSTANDING_MAX, QUEUED_BYTES_MAX};
use crate::net::spawn_vital;
use crate::security::{KeyId, Sealer, Session, Stream, Tls};
use crate::telemetry::Metrics;

/// How often the writer lets others go first while that brings more requests. A round is one look at what is ready, so this
/// holds a request back by microseconds at most.
const GATHER_ROUNDS_MAX: usize = 16;
/// How often, and how many times, a connection that is to close looks whether something is still under way: for longer than
/// any request takes.
const RETIRE_PAUSE: Duration = Duration::from_secs(1);
const RETIRE_ROUNDS_MAX: usize = 65;
/// A reply and the raw values behind it.
pub(super) type Replied = (Reply, Bytes);

/// One open connection. Ends when either side closes it; whoever waits then is told that it broke.
#[derive(Debug)]
pub(super) struct Connection {
    address: SocketAddr,
    key: Option<KeyId>,
    /// Who has proved to be at the other end.
    peer: Option<Party>,
    /// The TLS connection below.
    session: Option<Session>,
    queue: Mutex<Queue>,
    /// Wakes the writer.
    wake: Notify,
    closed: CancellationToken,
    life: Arc<Life>,
    sent_bytes_max: usize,
    /// The last sign of life that was asked for.
    probe: Mutex<Option<oneshot::Receiver<Replied>>>,
}

/// The longest frames that this end takes and sends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) taken: usize,
    pub(super) sent: usize,
}

#[derive(Debug)]
struct Queue {
    out: Outbox,
    last_id: u32,
    outstanding: BTreeMap<u32, oneshot::Sender<Replied>>,
}

impl Connection {
    pub(super) fn start(
        address: SocketAddr,
        upgraded: Upgraded,
        life: Arc<Life>,
        bounds: Bounds,
        metrics: &Arc<Metrics>,
    ) -> Arc<Connection> {
        let Upgraded { stream, early, session, proved, .. } = upgraded;
        let (key, peer, seals) = match proved {
            Some(proved) => (Some(proved.key), Some(proved.peer), proved.seals),
            None => (None, None, None),
        };
        let (sealer, opener) = seals.unzip();
        let out = Outbox::new(sealer.is_some());
        let connection = Arc::new(Connection {
            address,
            key,
            peer,
            session,
            queue: Mutex::new(Queue { out, last_id: 0, outstanding: BTreeMap::new() }),
            wake: Notify::new(),
            closed: CancellationToken::new(),
            life,
            sent_bytes_max: bounds.sent,
            probe: Mutex::default(),
        });
        connection.life.hear();
        let inbox = Inbox::new(opener, bounds.taken);
        match stream {
            Stream::Plain(stream) => {
                let (reading, writing) = stream.into_split();
                spawn_vital("link", connection.clone().read(reading, early, inbox, metrics.clone()));
                spawn_vital("link", connection.clone().write(writing, sealer, metrics.clone()));
            }
            Stream::Tls(stream) => {
                let (reading, writing) = tokio::io::split(stream);
                spawn_vital("link", connection.clone().read(reading, early, inbox, metrics.clone()));
                spawn_vital("link", connection.clone().write(writing, sealer, metrics.clone()));
            }
        }
        connection
    }

    /// Whether this leads to the one that is called. Without a secret nobody proves that.
    pub(super) fn leads_to(&self, called: Called<'_>) -> bool {
        self.peer.as_ref().is_none_or(|peer| peer.is_called(called))
    }

    /// The secret that both ends have proved to hold.
    pub(super) fn key(&self) -> Option<KeyId> {
        self.key
    }

    /// Whether a connection that is made now would rest on the same certificates, and these are accepted.
    pub(super) fn is_current(&self, tls: &Tls) -> bool {
        self.session.as_ref().is_none_or(|session| tls.is_current(session))
    }

    /// Closes once nothing is under way any more. Nobody is to be given this connection any longer.
    pub(super) async fn retire(self: Arc<Connection>) {
        for _ in 0..RETIRE_ROUNDS_MAX {
            // First of all: somebody may have been given it just now.
            sleep(RETIRE_PAUSE).await;
            if self.queue.lock().outstanding.is_empty() {
                break;
            }
        }
        self.close();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Sends one request, which is withdrawn when nobody waits for its reply any more.
    pub(super) fn send(
        &self,
        request: &Request,
        values: &[Bytes],
        deadline: Instant,
    ) -> Result<Outstanding<'_>, LinkError> {
        let (answer, reply) = oneshot::channel();
        let left = deadline.saturating_duration_since(Instant::now()).as_millis() as u32;
        let id = self.enqueue(request, values, left, Some(answer))?;
        Ok(Outstanding { connection: self, id, reply })
    }

    /// Sends one request to which no reply comes.
    pub(super) fn tell(&self, request: &Request, values: &[Bytes]) -> Result<(), LinkError> {
        self.enqueue(request, values, 0, None).map(drop)
    }

    /// Asks the peer for a sign of life, unless one is still to come.
    pub(super) fn probe(&self) {
        let mut probe = self.probe.lock();
        if probe.as_mut().is_none_or(|pending| pending.try_recv() != Err(TryRecvError::Empty)) {
            let (answer, reply) = oneshot::channel();
            *probe = self.enqueue(&Request::Ping { clock: 0 }, &[], 0, Some(answer)).is_ok().then_some(reply);
        }
    }

    fn enqueue(
        &self,
        request: &Request,
        values: &[Bytes],
        deadline_ms: u32,
        answer: Option<oneshot::Sender<Replied>>,
    ) -> Result<u32, LinkError> {
        let mut queue = self.queue.lock();
        // Checked under the lock: `close` takes it to fail everything that is outstanding.
        if self.closed.is_cancelled() {
            return Err(LinkError::Broken(self.address));
        }
        if queue.outstanding.len() >= OUTSTANDING_MAX || queue.out.len() >= QUEUED_BYTES_MAX {
            return Err(LinkError::Overloaded(self.address));
        }
        let id = queue.free_id();
        if !queue.out.push(id, deadline_ms, request, values, self.sent_bytes_max) {
            return Err(LinkError::TooLong);
        }
        if let Some(answer) = answer {
            queue.outstanding.insert(id, answer);
        }
        drop(queue);
        self.wake.notify_one();
        Ok(id)
    }

    /// Every waiting caller is told that the link broke.
    pub(super) fn close(&self) {
        let mut queue = self.queue.lock();
        self.closed.cancel();
        queue.outstanding.clear();
        queue.out.clear();
        drop(queue);
        self.wake.notify_one();
    }

    async fn write(
        self: Arc<Connection>,
        mut stream: impl AsyncWriteExt + Unpin,
        mut sealer: Option<Sealer>,
        metrics: Arc<Metrics>,
    ) {
        let mut batch = Outbox::new(sealer.is_some());
        while !self.closed.is_cancelled() {
            self.wake.notified().await;
            self.gather().await;
            while !self.closed.is_cancelled() {
                batch.clear();
                std::mem::swap(&mut batch, &mut self.queue.lock().out);
                if batch.is_empty() {
                    break;
                }
                let bytes = match batch.seal(sealer.as_mut()) {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        debug!(peer = %self.address, %error, "sealing what goes over a link");
                        return self.close();
                    }
                };
                metrics.link_sent_bytes.inc_by(bytes.len() as u64);
                let writing = async {
                    stream.write_all(bytes).await?;
                    // Under TLS, what was written may still wait.
                    stream.flush().await
                };
                // A peer that is stopped takes nothing for as long as it likes: then only closing ends it.
                let written = tokio::select! {
                    biased;
                    written = writing => written,
                    () = self.closed.cancelled() => return,
                };
                if let Err(error) = written {
                    debug!(peer = %self.address, %error, "writing to a link");
                    return self.close();
                }
            }
        }
    }

    /// Goes round the scheduler for as long as that brings more requests, so that those of this moment leave in one write. With
    /// nobody waiting for a reply there is nothing to gather: what is told comes alone.
    async fn gather(&self) {
        let mut gathered = {
            let queue = self.queue.lock();
            if queue.outstanding.is_empty() {
                return;
            }
            queue.out.len()
        };
        for _ in 0..GATHER_ROUNDS_MAX {
            tokio::task::yield_now().await;
            let bytes = self.queue.lock().out.len();
            if bytes == gathered || bytes >= BULK_BYTES {
                return;
            }
            gathered = bytes;
        }
    }

    async fn read(
        self: Arc<Connection>,
        mut stream: impl AsyncReadExt + Unpin,
        mut buffer: BytesMut,
        mut inbox: Inbox,
        metrics: Arc<Metrics>,
    ) {
        let mut closing = pin!(self.closed.cancelled());
        let reason = loop {
            match self.deliver(&mut buffer, &mut inbox) {
                Ok(()) => {}
                Err(error) => {
                    metrics.link_rejected.inc();
                    break error.to_string();
                }
            }
            buffer.reserve(4 << 10);
            tokio::select! {
                biased;
                read = stream.read_buf(&mut buffer) => match read {
                    Ok(0) => break "the peer closed it".to_string(),
                    Ok(bytes) => {
                        self.life.hear();
                        metrics.link_received_bytes.inc_by(bytes as u64);
                    }
                    Err(error) => break error.to_string(),
                },
                () = &mut closing => break "no longer wanted".to_string(),
            }
        };
        debug!(peer = %self.address, reason, "a link closed");
        self.close();
    }

    /// Hands every whole frame in `buffer` to whoever waits for it.
    fn deliver(&self, buffer: &mut BytesMut, inbox: &mut Inbox) -> Result<(), FrameError> {
        while let Some(Frame { id, head, value, .. }) = inbox.next::<Reply>(buffer)? {
            let waiting = self.queue.lock().outstanding.remove(&id);
            // Nobody waits any more for a late reply.
            if let Some(waiting) = waiting {
                let _ = waiting.send((head, value));
            }
        }
        Ok(())
    }
}

/// A request under way. Dropped, it is forgotten; a late reply is then dropped by its id.
#[derive(Debug)]
pub(super) struct Outstanding<'a> {
    connection: &'a Connection,
    id: u32,
    reply: oneshot::Receiver<Replied>,
}

impl Outstanding<'_> {
    pub(super) async fn reply(mut self) -> Result<Replied, LinkError> {
        (&mut self.reply).await.map_err(|_| LinkError::Broken(self.connection.address))
    }
}

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        // Once there is a reply, or the connection is gone, nothing is left to forget.
        if !self.reply.is_terminated() {
            self.connection.queue.lock().outstanding.remove(&self.id);
        }
    }
}

impl Queue {
    /// The next id that no outstanding request has.
    fn free_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if !self.outstanding.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }
}
