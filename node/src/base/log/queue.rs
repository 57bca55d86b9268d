//! The bounded queue of lines, and the thread that writes them.

use std::io::{self, ErrorKind, Write};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;
use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

use super::{Panics, TARGET};

/// Bytes of lines that wait to be written. Beyond, lines are lost and counted.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// How long the thread waits for a line before it runs the periodic work.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// How soon a pipe that is full, and does not block, is tried again.
const AGAIN: Duration = Duration::from_millis(20);
/// How often [`Log::flush`] looks whether all is written.
const LOOK: Duration = Duration::from_millis(5);
/// The name of the thread.
const THREAD: &str = "log";

/// Takes lines for the thread that writes them. Clones share the queue.
#[derive(Clone)]
pub struct Log(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// A line has arrived.
    arrived: Condvar,
    periodic_work: Mutex<Option<Box<dyn Fn() + Send>>>,
    panics: watch::Sender<Panics>,
}

#[derive(Default)]
struct Queue {
    /// Whole lines, one after the other.
    waiting: Vec<u8>,
    /// Whether the thread is writing what it took.
    is_writing: bool,
    /// Lines lost since the process began.
    lost: u64,
}

impl Queue {
    fn is_empty(&self) -> bool {
        !self.is_writing && self.waiting.is_empty()
    }
}

impl Log {
    /// Starts the thread that writes to `out`. It ends with the process.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(mut out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let worker = Arc::clone(&shared);
        // A panic of this thread ends the process, too; until then it writes the reason.
        let work = move || {
            while panic::catch_unwind(AssertUnwindSafe(|| worker.run(&mut out))).is_err() {
                thread::sleep(AGAIN);
            }
        };
        thread::Builder::new().name(THREAD.to_owned()).spawn(work)?;
        Ok(Self(shared))
    }

    /// Queues `line`, which ends with a line feed. Never waits for the thread.
    pub fn line(&self, line: &[u8]) {
        let mut queue = self.0.queue.lock();
        if queue.waiting.len() + line.len() > WAITING_BYTES_MAX {
            queue.lost += lines(line);
        } else {
            queue.waiting.extend_from_slice(line);
            self.0.arrived.notify_one();
        }
    }

    /// Lines lost since the process began.
    pub fn lost(&self) -> u64 {
        self.0.queue.lock().lost
    }

    /// The panics of this process.
    pub fn panics(&self) -> watch::Sender<Panics> {
        self.0.panics.clone()
    }

    /// Waits until every line is written or lost, but not much longer than `patience`.
    ///
    /// It reads no clock: it is also called when a clock is what failed. The thread of the log itself does not wait.
    pub fn flush(&self, patience: Duration) {
        if thread::current().name() == Some(THREAD) {
            return;
        }
        let mut waited = Duration::ZERO;
        while waited < patience && !self.0.queue.lock().is_empty() {
            thread::sleep(LOOK);
            waited += LOOK;
        }
    }

    /// Has the thread call `work` every few seconds, and after each batch of lines.
    pub(super) fn set_periodic_work(&self, work: impl Fn() + Send + 'static) {
        *self.0.periodic_work.lock() = Some(Box::new(work));
    }
}

impl Shared {
    fn run(&self, out: &mut impl Write) {
        let (mut said, mut is_cut) = (0, false);
        loop {
            if let Some(bytes) = self.take() {
                let unwritten = put(out, &bytes, is_cut);
                if let Some(last) = bytes[..bytes.len() - unwritten.len()].last() {
                    is_cut = *last != b'\n';
                }
                let lost = {
                    let mut queue = self.queue.lock();
                    queue.is_writing = false;
                    queue.lost += lines(unwritten);
                    queue.lost
                };
                if unwritten.is_empty() && lost > said {
                    warn!(target: TARGET, lost = lost - said, "lines of the log could not be written, and are missing");
                    said = lost;
                }
            }
            if let Some(work) = &*self.periodic_work.lock() {
                work();
            }
        }
    }

    /// All lines that wait; `None` after a while without any.
    fn take(&self) -> Option<Vec<u8>> {
        let mut queue = self.queue.lock();
        if queue.waiting.is_empty() {
            self.arrived.wait_for(&mut queue, IDLE_MAX);
        }
        let taken = std::mem::take(&mut queue.waiting);
        queue.is_writing = !taken.is_empty();
        queue.is_writing.then_some(taken)
    }
}

/// Writes `bytes`, on a new line if the last one was cut, and returns what could not be written.
fn put<'a>(out: &mut impl Write, bytes: &'a [u8], is_cut: bool) -> &'a [u8] {
    if is_cut {
        // If this fails, so does the next write.
        let _ = out.write(b"\n");
    }
    let mut rest = bytes;
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(written @ 1..) => rest = &rest[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(AGAIN),
            Ok(0) | Err(_) => break,
        }
    }
    rest
}

fn lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

/// One line of a [`Log`]; it is written in one piece.
pub struct Line<'a>(&'a Log);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Writes whenever it is told how: with an error, or as many bytes as a number says.
    struct Slow {
        told: mpsc::Receiver<Result<usize, ErrorKind>>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let many = self.told.recv().map_err(|_| ErrorKind::BrokenPipe)??.min(bytes.len());
            let _ = self.written.send(bytes[..many].to_vec());
            Ok(many)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Slowly = (Log, mpsc::Sender<Result<usize, ErrorKind>>, mpsc::Receiver<Vec<u8>>);

    fn slow() -> Slowly {
        let ((tell, told), (written, read)) = (mpsc::channel(), mpsc::channel());
        (Log::start(Slow { told, written }).expect("a thread"), tell, read)
    }

    /// Mutated: if `line` waits for room, or if the queue has no bound, this fails.
    #[test]
    fn a_line_never_waits_and_what_does_not_fit_is_counted() {
        let (log, tell, read) = slow();
        let line = [b'a'; 1023].into_iter().chain([b'\n']).collect::<Vec<_>>();
        let many = 3 * (WAITING_BYTES_MAX / line.len()) as u64;
        (0..many).for_each(|_| log.line(&line));
        log.flush(Duration::from_millis(10));
        let lost = log.lost();
        assert!(lost >= many / 3 && lost < many, "{lost} of {many}");
        // The reader goes on.
        (0..many).for_each(|_| tell.send(Ok(usize::MAX)).expect("it is there"));
        log.flush(PATIENCE);
        let written: usize = read.try_iter().map(|bytes| bytes.len()).sum();
        assert_eq!(written as u64 / 1024, many - lost, "all others");
        assert_eq!(log.lost(), lost);
    }

    /// Mutated: if an error ends the thread, the last line is not written.
    #[test]
    fn lines_that_cannot_be_written_are_counted_and_later_ones_are_written() {
        let (log, tell, read) = slow();
        tell.send(Ok(2)).expect("it is there");
        tell.send(Err(ErrorKind::StorageFull)).expect("it is there");
        log.line(b"one\ntwo\n");
        log.flush(PATIENCE);
        assert_eq!((log.lost(), read.recv().expect("written")), (2, b"on".to_vec()));
        // First a line feed, since the line before was cut.
        for how in [Ok(1), Err(ErrorKind::Interrupted), Err(ErrorKind::WouldBlock), Ok(3), Ok(usize::MAX)] {
            tell.send(how).expect("it is there");
        }
        log.line(b"three\n");
        log.flush(PATIENCE);
        let written = read.try_iter().collect::<Vec<_>>().concat();
        assert_eq!((log.lost(), String::from_utf8(written).expect("text")), (2, "\nthree\n".to_owned()));
    }
}
