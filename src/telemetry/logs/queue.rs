//! The queue of the log, and the one thread that writes it.
//!
//! Whoever logs copies a line into memory and goes on. A line that finds no room, or that cannot be written, is dropped and
//! counted, and the log tells so as soon as it can be written again. tracing-appender bounds only the number of lines,
//! drops what fails without counting it, and panics when it has no thread or standard output is broken. Invariant: only the
//! thread waits for the file, however long that takes.

use std::borrow::Cow;
use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::telemetry::Counter;

/// Lines, and their bytes, that wait in each share of the queue. The thread holds as many again while it writes them.
const LINES_MAX: usize = 16384;
const BYTES_MAX: usize = 2 << 20;
/// Whole lines that are written in one call: as many bytes as POSIX lets a pipe take at once (`PIPE_BUF` of Linux), so that
/// lines of several processes that log to one pipe do not mix.
const WRITE_BYTES: usize = 4096;
/// Memory that an idle queue keeps.
const IDLE_BYTES: usize = 64 << 10;
/// How often it is tried whether the log can be written again when nothing else is to be logged.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause before a file that is busy is tried again: another process may have made it non-blocking.
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// Pause in which the lines of requests gather, so that not every request wakes the thread: with the access log on that
/// halves what a line costs. No bound is near at a million requests a second.
const GATHER_PAUSE: Duration = Duration::from_millis(2);
const NO_ROOM: &str = "they came faster than they were read";

/// Whose room a line takes, so that a flood of one sort keeps no line of the other out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Share {
    /// What the node itself has to say.
    Node,
    /// A line for each request.
    Access,
}

/// Lines that wait to be written.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    written: Condvar,
    dropped: Counter,
}

#[derive(Default)]
struct Waiting {
    batch: Batch,
    is_writing: bool,
    lost: Lost,
}

/// Lines that were dropped and not yet told of.
#[derive(Default)]
struct Lost {
    lines: u64,
    reason: Cow<'static, str>,
}

/// Lines one after another in one buffer.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Lines and bytes by [`Share`].
    taken: [(usize, usize); 2],
}

impl Queue {
    /// A queue whose lines one thread writes to `out`; `tell` makes the line about those that were lost.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        dropped: Counter,
        tell: impl Fn(u64, &str) -> String + Send + 'static,
    ) -> io::Result<Arc<Queue>> {
        let queue = Arc::new(Queue {
            waiting: Mutex::default(),
            arrived: Condvar::new(),
            written: Condvar::new(),
            dropped,
        });
        let writer = Writer { queue: queue.clone(), out, tell, is_mid_line: false };
        thread::Builder::new().name("log".into()).spawn(move || writer.run())?;
        Ok(queue)
    }

    /// Has a whole line written, if there is room for it.
    pub(super) fn push(&self, share: Share, line: &[u8]) {
        let mut waiting = self.waiting.lock();
        let fits = waiting.batch.push(share, line);
        if !fits {
            waiting.lost.add(1, NO_ROOM.into());
            self.dropped.inc();
        }
        // The thread would wake only to wait for the lock.
        drop(waiting);
        self.arrived.notify_one();
    }

    /// Waits until all is written, but not longer than `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut waiting = self.waiting.lock();
        while waiting.is_writing || !waiting.batch.ends.is_empty() {
            if self.written.wait_until(&mut waiting, deadline).timed_out() {
                return;
            }
        }
    }

    /// The lines that have come since, in exchange for those that were written; none when it is time to try again.
    fn take(&self, mut done: Batch) -> Batch {
        done.clear();
        let mut waiting = self.waiting.lock();
        waiting.is_writing = false;
        self.written.notify_all();
        while waiting.batch.ends.is_empty() {
            if waiting.lost.lines == 0 {
                self.arrived.wait(&mut waiting);
            } else if self.arrived.wait_for(&mut waiting, RETRY_PAUSE).timed_out() {
                break;
            }
        }
        waiting.is_writing = true;
        std::mem::replace(&mut waiting.batch, done)
    }

    fn lose(&self, lines: usize, error: &io::Error) {
        self.dropped.inc_by(lines as u64);
        self.waiting.lock().lost.add(lines as u64, error.to_string().into());
    }
}

impl Lost {
    fn add(&mut self, lines: u64, reason: Cow<'static, str>) {
        self.lines += lines;
        self.reason = reason;
    }
}

impl Batch {
    fn push(&mut self, share: Share, line: &[u8]) -> bool {
        let (lines, bytes) = &mut self.taken[share as usize];
        let fits = *lines < LINES_MAX && *bytes + line.len() <= BYTES_MAX;
        if fits {
            *lines += 1;
            *bytes += line.len();
            self.bytes.extend_from_slice(line);
            self.ends.push(self.bytes.len());
        }
        fits
    }

    fn holds(&self, share: Share) -> bool {
        self.taken[share as usize].0 > 0
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(IDLE_BYTES);
        self.ends.clear();
        self.taken = Default::default();
    }

    /// Its lines, by as many as are written in one call.
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let (mut rest, mut from) = (&self.ends[..], 0);
        std::iter::from_fn(move || {
            rest.first()?;
            // A line that is longer goes alone.
            let lines = rest.partition_point(|end| end - from <= WRITE_BYTES).max(1);
            let piece = &self.bytes[from..rest[lines - 1]];
            (rest, from) = (&rest[lines..], rest[lines - 1]);
            Some(piece)
        })
    }
}

/// The thread.
struct Writer<W, T> {
    queue: Arc<Queue>,
    out: W,
    tell: T,
    /// A full disk took a part of a line.
    is_mid_line: bool,
}

impl<W: Write, T: Fn(u64, &str) -> String> Writer<W, T> {
    fn run(mut self) {
        let mut batch = Batch::default();
        loop {
            batch = self.queue.take(batch);
            let mut is_well = true;
            for piece in batch.pieces() {
                is_well = self.write(piece).map_err(|(lost, error)| self.queue.lose(lost, &error)).is_ok();
            }
            if is_well {
                self.tell_of_lost();
            }
            if batch.holds(Share::Access) {
                thread::sleep(GATHER_PAUSE);
            }
        }
    }

    fn tell_of_lost(&mut self) {
        let lost = std::mem::take(&mut self.queue.waiting.lock().lost);
        if lost.lines > 0 && self.write((self.tell)(lost.lines, &lost.reason).as_bytes()).is_err() {
            // Later, then, with those that were lost since.
            let mut waiting = self.queue.waiting.lock();
            waiting.lost.add(lost.lines, lost.reason);
        }
    }

    /// Writes whole lines; or says how many of them were lost, and why.
    fn write(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)> {
        let written = if self.is_mid_line { self.write_bytes(b"\n").1 } else { Ok(()) };
        let (count, written) = match written {
            Ok(()) => {
                self.is_mid_line = false;
                self.write_bytes(lines)
            }
            failed => (0, failed),
        };
        if count > 0 {
            self.is_mid_line = lines[count - 1] != b'\n';
        }
        let is_end = |byte: &&u8| **byte == b'\n';
        written.map_err(|error| (lines[count..].iter().filter(is_end).count(), error))
    }

    /// Writes all of it, or as many bytes as it says.
    fn write_bytes(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let mut count = 0;
        while count < bytes.len() {
            match self.out.write(&bytes[count..]) {
                Ok(0) => return (count, Err(ErrorKind::WriteZero.into())),
                Ok(more) => count += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(BUSY_PAUSE),
                Err(error) => return (count, Err(error)),
            }
        }
        (count, Ok(()))
    }
}

#[cfg(test)]
mod tests;
