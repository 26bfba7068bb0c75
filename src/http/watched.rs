//! A connection under watch: how long it may be idle, send a head or take an answer, and what is said when the HTTP parser
//! gives up.
//!
//! hyper closes a slow connection without a word and answers a broken request with an empty body; here both get the error
//! that everything else gets. Invariant: bytes pass unchanged, unless they are the parser's own answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::task::{Context, Poll};

use hyper::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::error::ApiError;
use super::limits::{Arrivals, Gauge, Held, Limits};
use crate::security::Stream;
use crate::telemetry::{Limit, Metrics};

/// Head and body of a short answer are sent as one, for `send` of one buffer costs less than `writev` of two.
const TOGETHER_BYTES_MAX: usize = 4 << 10;

/// What a connection is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing of the next request has arrived.
    Idle,
    /// Its head is arriving.
    Head,
    /// It is being served.
    Busy,
    /// The head took too long, which is still to be said.
    Late,
    /// All is over.
    Over,
}

const PHASES: [Phase; 5] = [Phase::Idle, Phase::Head, Phase::Busy, Phase::Late, Phase::Over];

/// What the connection's task and its stream know of each other. Nothing here asks what time it is: that is for the task, which
/// looks now and then.
pub(super) struct Watch {
    phase: AtomicU8,
    /// Grows with everything that happens.
    events: AtomicU32,
    /// Grows when the other side does not take what is sent at once, and again when it has taken it all: odd in between.
    blocked: AtomicU32,
    metrics: Arc<Metrics>,
}

/// What the task saw when it last looked, and since when.
pub(super) struct Seen {
    phase: Phase,
    events: u32,
    since: Instant,
    blocked: u32,
    blocked_since: Instant,
}

impl Watch {
    pub(super) fn new(metrics: Arc<Metrics>) -> Arc<Watch> {
        Arc::new(Watch {
            phase: AtomicU8::new(Phase::Idle as u8),
            events: AtomicU32::new(0),
            blocked: AtomicU32::new(0),
            metrics,
        })
    }

    /// A request is being served from here on.
    pub(super) fn begin(&self) {
        self.enter(Phase::Busy);
    }

    /// Its answer is ready.
    pub(super) fn end(&self) {
        self.enter(Phase::Idle);
    }

    pub(super) fn see(&self) -> Seen {
        let now = Instant::now();
        Seen {
            phase: self.phase(),
            events: self.events.load(Ordering::Relaxed),
            since: now,
            blocked: self.blocked.load(Ordering::Relaxed),
            blocked_since: now,
        }
    }

    /// Notices that the time is up, if nothing has happened since what was seen; the stream then ends when it is next read.
    pub(super) fn look(&self, seen: &mut Seen, limits: &Limits) {
        let now = self.see();
        // Bytes of a head are no reason for patience, or it could be sent for ever; nor are those of an answer that are taken.
        if (now.phase, now.events) != (seen.phase, seen.events) {
            (seen.phase, seen.events, seen.since) = (now.phase, now.events, now.since);
        }
        if now.blocked != seen.blocked {
            (seen.blocked, seen.blocked_since) = (now.blocked, now.blocked_since);
        }
        let waited = now.since.duration_since(seen.since);
        let (limit, next) = match seen.phase {
            Phase::Late | Phase::Over => return,
            _ if is_odd(seen.blocked) => {
                if now.blocked_since.duration_since(seen.blocked_since) < limits.body_timeout {
                    return;
                }
                (Limit::AnswerTime, Phase::Over)
            }
            Phase::Idle if waited >= limits.idle_timeout => (Limit::Idle, Phase::Over),
            Phase::Head if waited >= limits.head_timeout => (Limit::HeadTime, Phase::Late),
            Phase::Idle | Phase::Head | Phase::Busy => return,
        };
        self.metrics.refuse(limit);
        self.enter(next);
    }

    /// What is said now and then, as in a stream of events, is no idleness.
    fn note_write(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match self.phase() {
            Phase::Late | Phase::Over => return Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Phase::Idle if matches!(written, Poll::Ready(Ok(_))) => self.enter(Phase::Idle),
            Phase::Idle | Phase::Head | Phase::Busy => {}
        }
        self.note_blocked(written.is_pending(), false);
        written
    }

    /// Of a flush, which hyper asks for when it has nothing more to write; under TLS, what was written may still wait.
    fn note_flush(&self, done: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        self.note_blocked(done.is_pending(), done.is_ready());
        match (done, self.phase()) {
            (Poll::Pending, Phase::Late | Phase::Over) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            (done, _) => done,
        }
    }

    fn note_blocked(&self, begins: bool, ends: bool) {
        let blocked = self.blocked.load(Ordering::Relaxed);
        if (begins && !is_odd(blocked)) || (ends && is_odd(blocked)) {
            self.blocked.store(blocked.wrapping_add(1), Ordering::Relaxed);
        }
    }

    fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Relaxed))]
    }

    /// Only the connection's own task does this, so that nothing is lost between the two steps.
    fn enter(&self, phase: Phase) {
        self.events.store(self.events.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }
}

fn is_odd(count: u32) -> bool {
    count % 2 == 1
}

/// A stream that tells its watch what passes.
pub(super) struct Watched {
    stream: Stream,
    watch: Arc<Watch>,
    /// Whether the rest of something is to be written next.
    within: bool,
    /// For what is sent as one.
    together: Vec<u8>,
    arrivals: Arrivals,
    /// Of a head that is not whole yet.
    head_bytes: usize,
    held: Option<Held<Arc<Gauge>>>,
}

impl Watched {
    pub(super) fn new(stream: Stream, watch: Arc<Watch>, arrivals: Arrivals) -> Watched {
        Watched { stream, watch, within: false, together: Vec::new(), arrivals, head_bytes: 0, held: None }
    }

    /// What it watched.
    pub(super) fn into_inner(self) -> Stream {
        self.stream
    }

    /// The answer instead of the parser's own, if these bytes are that.
    fn replacement(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.within || !bytes.starts_with(b"HTTP/1.1 4") || !is_empty_answer(bytes) {
            return None;
        }
        let status = std::str::from_utf8(bytes.get(9..12)?).ok()?.parse().ok()?;
        let (limit, error) = match StatusCode::from_u16(status).ok()? {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => (Limit::HeadSize, ApiError::head_too_large()),
            StatusCode::URI_TOO_LONG => (Limit::HeadSize, ApiError::target_too_long()),
            StatusCode::BAD_REQUEST => {
                (Limit::Malformed, ApiError::invalid("this is not a well-formed HTTP/1.1 request"))
            }
            _ => return None,
        };
        self.watch.metrics.refuse(limit);
        Some(error.to_bytes())
    }

    /// Counts what has arrived, if it is of a head. False if all heads together are too long.
    fn note_head(&mut self, bytes: usize) -> bool {
        match self.watch.phase() {
            Phase::Idle => {
                self.watch.enter(Phase::Head);
                (self.head_bytes, self.held) = (bytes, None);
            }
            Phase::Head => self.head_bytes += bytes,
            Phase::Busy | Phase::Late | Phase::Over => {
                self.held = None;
                return true;
            }
        }
        self.arrivals.count(&mut self.held, self.head_bytes)
    }

    /// The last words. Best effort: who is slow to send, or sends too much, may not take anything either.
    fn end_with(&mut self, cx: &mut Context<'_>, error: &ApiError) {
        let _ = Pin::new(&mut self.stream).poll_write(cx, &error.to_bytes());
        let _ = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch.enter(Phase::Over);
    }

    /// What became of writing as many `bytes`.
    fn note(&mut self, written: Poll<io::Result<usize>>, bytes: usize) -> Poll<io::Result<usize>> {
        if self.watch.phase() != Phase::Head {
            self.held = None;
        }
        if let Poll::Ready(Ok(written)) = written {
            self.within = written < bytes;
        }
        self.watch.note_write(written)
    }
}

/// All answers of ours have a body.
fn is_empty_answer(bytes: &[u8]) -> bool {
    let head_end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    head_end.is_some_and(|end| {
        if end + 4 != bytes.len() {
            return false;
        }
        let head = &bytes[..end + 2];
        let has = |field: &[u8]| head.windows(field.len()).any(|part| part.eq_ignore_ascii_case(field));
        has(b"\r\ncontent-length: 0\r\n") && !has(b"\r\ncontent-type:")
    })
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.watch.phase() {
            Phase::Idle | Phase::Head | Phase::Busy => {}
            Phase::Late => {
                self.end_with(cx, &ApiError::timeout("the headers of the request"));
                return Poll::Ready(Ok(()));
            }
            Phase::Over => return Poll::Ready(Ok(())),
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let bytes = buf.filled().len() - before;
        if bytes > 0 && !self.note_head(bytes) {
            // As if nothing more had come: the parser ends, and gives back what it has.
            buf.set_filled(before);
            self.watch.metrics.refuse(Limit::HeadMemory);
            self.end_with(cx, &ApiError::overloaded("too many long headers are arriving"));
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(answer) = self.replacement(bytes) {
            // It is short, and the connection ends with it.
            let _ = Pin::new(&mut self.stream).poll_write(cx, &answer);
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(written, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [one] = slices {
            return self.poll_write(cx, one);
        }
        let this = &mut *self;
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        let written = if bytes <= TOGETHER_BYTES_MAX {
            this.together.clear();
            slices.iter().for_each(|slice| this.together.extend_from_slice(slice));
            Pin::new(&mut this.stream).poll_write(cx, &this.together)
        } else {
            Pin::new(&mut this.stream).poll_write_vectored(cx, slices)
        };
        this.note(written, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch.note_flush(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch.note_flush(shut)
    }
}
