use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, channel};

use proptest::prelude::*;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// A file that does what it is told, one call after the other, and afterwards takes everything.
#[derive(Clone, Default)]
struct Scripted {
    calls: Arc<Mutex<VecDeque<io::Result<usize>>>>,
    taken: Arc<Mutex<Vec<u8>>>,
}

impl Write for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.calls.lock().pop_front().unwrap_or(Ok(bytes.len()))?;
        self.taken.lock().extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Scripted {
    fn new(calls: impl IntoIterator<Item = io::Result<usize>>) -> Scripted {
        Scripted { calls: Arc::new(Mutex::new(calls.into_iter().collect())), ..Scripted::default() }
    }

    fn text(&self) -> String {
        String::from_utf8(self.taken.lock().clone()).unwrap()
    }
}

/// A file that takes nothing until it is let go.
struct Stalled(Receiver<()>, Scripted);

impl Write for Stalled {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // An error once it has been let go.
        let _ = self.0.recv();
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn start(out: impl Write + Send + 'static) -> (Arc<Queue>, Counter) {
    let dropped = Counter::new("dropped", "dropped").unwrap();
    let tell = |lines: u64, reason: &str| format!("{lines} lost: {reason}\n");
    (Queue::start(out, dropped.clone(), tell).unwrap(), dropped)
}

fn system_error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

#[test]
fn lines_are_written_in_their_order() {
    let file = Scripted::default();
    let (queue, dropped) = start(file.clone());
    let lines: Vec<String> = (0..5000).map(|number| format!("line {number}\n")).collect();
    lines.iter().for_each(|line| queue.push(Share::Node, line.as_bytes()));
    queue.flush(PATIENCE);
    assert_eq!((file.text(), dropped.get()), (lines.concat(), 0));
}

#[test]
fn lines_that_fail_are_counted_and_told_of_once_it_works_again() {
    // ENOSPC, EIO, EPIPE, and a file that takes nothing.
    let broken = [28, 5, 32].map(|number| Err(system_error(number))).into_iter().chain([Ok(0)]);
    let file = Scripted::new(broken);
    let (queue, dropped) = start(file.clone());
    for number in 0..4 {
        queue.push(Share::Node, format!("lost {number}\n").as_bytes());
        queue.flush(PATIENCE);
    }
    assert_eq!((file.text(), dropped.get()), (String::new(), 4));
    queue.push(Share::Node, b"written\n");
    queue.flush(PATIENCE);
    let reason = io::Error::from(ErrorKind::WriteZero);
    assert_eq!(file.text(), format!("written\n4 lost: {reason}\n"));
    queue.push(Share::Node, b"and on\n");
    queue.flush(PATIENCE);
    assert!(file.text().ends_with("\nand on\n"), "{}", file.text());
    assert_eq!(dropped.get(), 4);
}

#[test]
fn lost_lines_are_told_of_also_when_nothing_else_is_logged() {
    let file = Scripted::new([Err(system_error(28)), Err(system_error(28))]);
    let (queue, _) = start(file.clone());
    queue.push(Share::Node, b"lost\n");
    let deadline = Instant::now() + PATIENCE;
    while file.text().is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(file.text(), format!("1 lost: {}\n", system_error(28)));
}

#[test]
fn a_line_of_which_a_full_disk_took_a_part_does_not_run_into_the_next() {
    let file = Scripted::new([Ok(3), Err(system_error(28))]);
    let (queue, dropped) = start(file.clone());
    queue.push(Share::Node, b"half a line\n");
    queue.flush(PATIENCE);
    queue.push(Share::Node, b"whole\n");
    queue.flush(PATIENCE);
    assert_eq!(file.text(), format!("hal\nwhole\n1 lost: {}\n", system_error(28)));
    assert_eq!(dropped.get(), 1);
}

#[test]
fn interrupted_and_busy_files_are_tried_again() {
    let calls = [Err(ErrorKind::Interrupted.into()), Ok(2), Err(ErrorKind::WouldBlock.into())];
    let file = Scripted::new(calls);
    let (queue, dropped) = start(file.clone());
    queue.push(Share::Node, b"line\n");
    queue.flush(PATIENCE);
    assert_eq!((&*file.text(), dropped.get()), ("line\n", 0));
}

#[test]
fn a_stalled_file_stops_nobody_and_each_share_has_its_bounds() {
    let (release, held) = channel::<()>();
    let file = Scripted::default();
    let (queue, dropped) = start(Stalled(held, file.clone()));
    // Which the thread takes, and hangs.
    queue.push(Share::Node, b"first\n");
    while !queue.waiting.lock().is_writing {
        thread::yield_now();
    }
    for _ in 0..2 * LINES_MAX {
        queue.push(Share::Access, b"a request\n");
    }
    assert_eq!(dropped.get(), LINES_MAX as u64);
    let long = [&[b'.'; BYTES_MAX / 2][..], b"\n"].concat();
    (0..3).for_each(|_| queue.push(Share::Node, &long));
    assert_eq!(dropped.get(), LINES_MAX as u64 + 2);
    queue.push(Share::Node, b"a warning\n");
    assert_eq!(dropped.get(), LINES_MAX as u64 + 2);
    let started = Instant::now();
    queue.flush(Duration::from_millis(50));
    assert!(started.elapsed() < PATIENCE / 2);
    drop(release);
    queue.flush(PATIENCE);
    let text = file.text();
    assert_eq!(text.matches("a request\n").count(), LINES_MAX);
    assert!(text.starts_with(&format!("first\n{} lost: {NO_ROOM}\n", LINES_MAX + 2)));
    assert!(text.ends_with("a warning\n"));
}

proptest! {
    #[test]
    fn pieces_are_whole_lines_of_at_most_what_is_written_at_once(lengths in prop::collection::vec(1..9000_usize, 0..40)) {
        let mut batch = Batch::default();
        for length in lengths {
            let mut line = vec![b'.'; length];
            line[length - 1] = b'\n';
            prop_assert!(batch.push(Share::Node, &line));
        }
        let pieces: Vec<&[u8]> = batch.pieces().collect();
        prop_assert_eq!(pieces.concat(), batch.bytes.clone());
        for piece in pieces {
            prop_assert_eq!(piece.last(), Some(&b'\n'));
            let lines = piece.iter().filter(|byte| **byte == b'\n').count();
            prop_assert!(piece.len() <= WRITE_BYTES || lines == 1, "{} bytes in {} lines", piece.len(), lines);
        }
    }
}
