//! Processes: started with a log file, ended by signal, and never left behind by accident.
//!
//! A process either lives with us or is detached. One that lives with us is killed when its handle is dropped, and by the
//! kernel when this whole process dies, however that happens. The kernel ties that to the *thread* that started it, so one
//! thread that never ends starts them all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::base::wait::wait_until;

/// How long a process may take to vanish after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How long a process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Until its handle is dropped, or this process ends.
    WithUs,
    /// Until a caller ends it.
    Detached,
}

/// A running process, or one that was.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    /// An argument that a later process with the same number does not have.
    mark: String,
    child: Option<Child>,
    lifetime: Lifetime,
}

impl Process {
    /// Starts `command` with nothing to read, and its output appended to `log`. `mark` is an argument that no other
    /// process has, such as its data directory.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start(command: Command, mark: &Path, log: &Path, lifetime: Lifetime) -> io::Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let child = match lifetime {
            Lifetime::Detached => with_output(command, log)?.process_group(0).spawn()?,
            Lifetime::WithUs => with_output(tied_to_us(&command), log.try_clone()?)
                .and_then(start_on_lasting_thread)
                .or_else(|error| match error.kind() {
                // Without util-linux only the kernel's part is missing.
                io::ErrorKind::NotFound => with_output(command, log).and_then(start_on_lasting_thread),
                _ => Err(error),
            })?,
        };
        let mark = mark.display().to_string();
        Ok(Self { pid: child.id(), mark, child: Some(child), lifetime })
    }

    /// A process that another program started; `None` if it has ended.
    pub fn attach(pid: u32, mark: &Path) -> Option<Self> {
        let process = Self { pid, mark: mark.display().to_string(), child: None, lifetime: Lifetime::Detached };
        process.lives().then_some(process)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn is_alive(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => self.lives(),
        }
    }

    /// How it ended; `None` while it runs, or if another program started it.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok()?
    }

    /// Kills it without warning, and returns when it is gone.
    ///
    /// # Errors
    /// If it does not go.
    pub fn kill(&mut self) -> io::Result<()> {
        self.end(Signal::KILL, KILL_PATIENCE)
    }

    /// Asks it to end, and returns when it has.
    ///
    /// # Errors
    /// If it has not after `patience`.
    pub fn terminate(&mut self, patience: Duration) -> io::Result<()> {
        self.end(Signal::TERM, patience)
    }

    /// Stops it in the middle of whatever it does; when this returns, none of its threads moves.
    ///
    /// # Errors
    /// If it is gone.
    pub fn pause(&self) -> io::Result<()> {
        self.signal(Signal::STOP)?;
        let tasks = format!("/proc/{}/task", self.pid);
        let stands = |task: fs::DirEntry| matches!(state(&task.path()), None | Some(b'T' | b'Z' | b'X'));
        let all_stand = || fs::read_dir(&tasks).ok()?.flatten().all(stands).then_some(());
        wait_until(format!("process {} to stand still", self.pid), KILL_PATIENCE, all_stand)
            .map_err(|late| io::Error::new(io::ErrorKind::TimedOut, late))
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// If it is gone.
    pub fn resume(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    fn end(&mut self, signal: Signal, patience: Duration) -> io::Result<()> {
        let begun = begin(&self.directory());
        match self.signal(signal) {
            Err(_) if !self.is_alive() => return Ok(()),
            sent => sent?,
        }
        wait_until(format!("process {} to end", self.pid), patience, || self.is_gone(begun).then_some(()))
            .map_err(|late| io::Error::new(io::ErrorKind::TimedOut, late))
    }

    /// Whether nothing is left of the process that began at `begun`. A process that dies loses its arguments first, and its
    /// files, with the locks on them, when its last thread ends.
    fn is_gone(&mut self, begun: Option<u64>) -> bool {
        if let Some(child) = &mut self.child {
            return !matches!(child.try_wait(), Ok(None));
        }
        let process = self.directory();
        let ended = |thread: fs::DirEntry| matches!(state(&thread.path()), None | Some(b'Z' | b'X'));
        let all_ended = fs::read_dir(process.join("task")).is_ok_and(|threads| threads.flatten().all(ended));
        begin(&process) != begun || all_ended
    }

    fn directory(&self) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string())
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).filter(|_| self.lives());
        Ok(kill_process(pid.ok_or(io::ErrorKind::NotFound)?, signal)?)
    }

    /// Whether the process of this number is the one that was started, and not yet a zombie.
    fn lives(&self) -> bool {
        let process = self.directory();
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let ours = arguments.split(|byte| *byte == 0).any(|argument| argument == self.mark.as_bytes());
        ours && !matches!(state(&process), None | Some(b'Z' | b'X'))
    }
}

/// The state of a process or thread, one letter, from its directory below `/proc`; `None` if it is gone.
fn state(task: &Path) -> Option<u8> {
    field(task, 3)?.bytes().next()
}

/// When a process began, in ticks since the machine did; `None` if it is gone. No later process with its number has the same.
fn begin(process: &Path) -> Option<u64> {
    field(process, 22)?.parse().ok()
}

/// A field of `stat`, by its number in proc(5), from 3.
fn field(task: &Path, number: usize) -> Option<String> {
    let status = fs::read(task.join("stat")).ok()?;
    let status = String::from_utf8_lossy(&status);
    // The name before it stands in parentheses and may hold anything, further parentheses too.
    let (_, fields) = status.rsplit_once(')')?;
    fields.split_whitespace().nth(number - 3).map(str::to_owned)
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::WithUs {
            // A destructor cannot report an error; the kernel ends the process with this one at the latest.
            let _ = self.kill();
        }
    }
}

fn with_output(mut command: Command, log: File) -> io::Result<Command> {
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

/// The same command, to be killed when the thread that starts it ends.
fn tied_to_us(command: &Command) -> Command {
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "KILL"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => tied.env(name, value),
            None => tied.env_remove(name),
        };
    }
    tied
}

fn start_on_lasting_thread(command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static STARTER: LazyLock<mpsc::Sender<Job>> = LazyLock::new(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in jobs {
                // If the caller no longer waits, it does not need the process either.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let gone = |_| io::Error::other("the thread that starts processes is gone");
    let (answer, started) = mpsc::channel();
    STARTER.send((command, answer)).map_err(|_| gone(()))?;
    started.recv().map_err(|_| gone(()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(mark: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo up; while :; do sleep 1; done", mark]);
        command
    }

    #[test]
    fn a_process_with_us_ends_with_its_handle() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = dir.path().join("log");
        let mut process =
            Process::start(sleeper("mark-a"), Path::new("mark-a"), &log, Lifetime::WithUs).expect("starts");
        assert!(process.is_alive());
        let patience = Duration::from_secs(10);
        wait_until("its first words", patience, || (fs::read(&log).ok()? == b"up\n").then_some(())).expect("it speaks");
        let pid = process.pid();
        assert!(Process::attach(pid, Path::new("mark-a")).is_some());
        assert!(Process::attach(pid, Path::new("another")).is_none(), "a number alone names no process");
        drop(process);
        assert!(Process::attach(pid, Path::new("mark-a")).is_none());
    }

    #[test]
    fn a_detached_process_survives_its_handle_and_can_be_ended_by_number() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = dir.path().join("log");
        let process = Process::start(sleeper("mark-b"), Path::new("mark-b"), &log, Lifetime::Detached).expect("starts");
        let pid = process.pid();
        drop(process);
        // A process has no arguments yet for a moment while the kernel puts its program in place.
        let find = || Process::attach(pid, Path::new("mark-b"));
        let mut attached = wait_until("the process", Duration::from_secs(10), find).expect("it still runs");
        attached.pause().expect("stops");
        attached.resume().expect("goes on");
        attached.terminate(Duration::from_secs(10)).expect("ends");
        assert!(!attached.is_alive());
        attached.kill().expect("ending twice is fine");
    }

    /// `kill n1` and then `start n1`. The process has much memory: the kernel gives that back before it closes the files.
    /// Mutated: a process counts as gone when it has no arguments any more. It still holds the lock then.
    #[test]
    fn a_process_that_was_killed_holds_no_lock_any_more() {
        const LOCKED: &str = "QUORATE_TEST_LOCKED";
        const MEMORY_BYTES: usize = 256 << 20;
        if let Some(path) = std::env::var_os(LOCKED) {
            let memory = vec![1; MEMORY_BYTES];
            let file = File::create(&path).expect("our own directory");
            file.lock().expect("it is free");
            fs::write(Path::new(&path).with_extension("ready"), "").expect("our own directory");
            loop {
                std::thread::park();
                std::hint::black_box((&memory, &file));
            }
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("lock");
        let mut command = Command::new(std::env::current_exe().expect("the test binary"));
        let module = module_path!().split_once("::").expect("a module of a crate").1;
        command.args(["--exact", &format!("{module}::a_process_that_was_killed_holds_no_lock_any_more")]);
        command.env(LOCKED, &path);
        let mark = PathBuf::from("--exact");
        let started = Process::start(command, &mark, &dir.path().join("log"), Lifetime::WithUs).expect("starts");
        let ready = || path.with_extension("ready").exists().then_some(());
        wait_until("the lock", Duration::from_secs(60), ready).expect("it is taken");
        let lock = File::open(&path).expect("made");
        assert!(lock.try_lock().is_err(), "the control: it holds the lock");
        let mut attached = Process::attach(started.pid(), &mark).expect("it runs");
        attached.kill().expect("ends");
        lock.try_lock().expect("it is free");
    }
}
