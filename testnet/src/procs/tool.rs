//! One run of a command: its input, its output, and how it ends.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;

use crate::base::error::Error;
use crate::base::wait::wait_until;

/// A command that runs. Dropping it before it has finished kills it.
pub struct Tool {
    line: String,
    child: Child,
    stdout: Heard,
    stderr: Heard,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The command as a person would type it.
    pub line: String,
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    signal: Option<i32>,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Finished {
    /// Whether Ctrl-C ended it without a word.
    pub fn was_cut_short(&self) -> bool {
        self.signal == Some(Signal::INT.as_raw())
    }
}

impl Tool {
    /// Starts `command` and gives it `input` to read.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start(mut command: Command, input: &[u8]) -> Result<Self, Error> {
        let line = line(&command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Error::io(line.clone()))?;
        let (stdout, stderr) = (Heard::from(child.stdout.take()), Heard::from(child.stderr.take()));
        if let Some(mut stdin) = child.stdin.take() {
            let input = input.to_vec();
            // A command that ends without reading says why on stderr.
            std::thread::spawn(move || drop(stdin.write_all(&input)));
        }
        Ok(Self { line, child, stdout, stderr })
    }

    /// What it has said so far, on stdout and then on stderr.
    pub fn so_far(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.stdout.so_far()), String::from_utf8_lossy(&self.stderr.so_far()))
    }

    /// Interrupts it, as Ctrl-C does.
    ///
    /// # Errors
    /// If it is gone.
    pub fn interrupt(&self) -> Result<(), Error> {
        let sent = rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), Signal::INT);
        sent.map_err(|errno| Error::io(format!("interrupt `{}`", self.line))(errno.into()))
    }

    /// Whether Ctrl-C would be heard, instead of ending it: signals that are caught are bits in `/proc/PID/status`.
    pub fn listens_for_interrupt(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let caught = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok());
        caught.is_some_and(|caught| caught >> (Signal::INT.as_raw() - 1) & 1 == 1)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end, whatever the end is.
    ///
    /// # Errors
    /// [`Error::NotInTime`]; it is killed then.
    pub fn outcome(mut self, patience: Duration) -> Result<Finished, Error> {
        let what = format!("`{}` to end (so far: {})", self.line, self.so_far().trim_end());
        let status: ExitStatus = wait_until(what, patience, || self.child.try_wait().ok().flatten())?;
        let stderr = String::from_utf8_lossy(&self.stderr.all()).into_owned();
        let (line, stdout) = (std::mem::take(&mut self.line), self.stdout.all());
        Ok(Finished { line, code: status.code(), signal: status.signal(), stdout, stderr })
    }

    /// Waits for its success and returns what it wrote to stdout.
    ///
    /// # Errors
    /// [`Error::NotInTime`], or [`Error::Command`] with what it said.
    pub fn success(self, patience: Duration) -> Result<Vec<u8>, Error> {
        let finished = self.outcome(patience)?;
        match finished.code {
            Some(0) => Ok(finished.stdout),
            code => Err(Error::Command {
                command: finished.line,
                code: code.map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}")),
                stderr: finished.stderr.trim_end().to_owned(),
            }),
        }
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // It may end at this very moment, and then there is nothing to kill.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What is read from a pipe while the command runs: a full pipe would stop it.
struct Heard {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Heard {
    fn from(pipe: Option<impl Read + Send + 'static>) -> Self {
        let bytes: Arc<Mutex<Vec<u8>>> = Arc::default();
        let reader = pipe.map(|mut pipe| {
            let bytes = Arc::clone(&bytes);
            std::thread::spawn(move || {
                let mut buffer = [0; 8192];
                while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                    bytes.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
                }
            })
        });
        Self { bytes, reader }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn all(&mut self) -> Vec<u8> {
        if let Some(reader) = self.reader.take() {
            // The reader ends with the pipe and does nothing that panics.
            let _ = reader.join();
        }
        self.so_far()
    }
}

/// The command as a person would type it, with the program's name alone.
fn line(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn input_and_output_larger_than_a_pipe_pass_through() {
        let input = vec![7; 1 << 20];
        let tool = Tool::start(shell("cat"), &input).expect("starts");
        assert_eq!(tool.success(PATIENCE).expect("succeeds"), input);
    }

    #[test]
    fn a_failure_says_what_was_said() {
        let tool = Tool::start(shell("echo out; echo why >&2; exit 3"), b"").expect("starts");
        let error = tool.success(PATIENCE).expect_err("it fails").to_string();
        assert!(error.contains("exit code 3") && error.ends_with("why"), "{error}");
    }

    #[test]
    fn a_command_that_takes_too_long_is_killed() {
        let tool = Tool::start(shell("echo begun; exec sleep 600"), b"").expect("starts");
        wait_until("its first words", PATIENCE, || (tool.so_far() == "begun\n").then_some(())).expect("it speaks");
        assert!(matches!(tool.outcome(Duration::from_millis(50)), Err(Error::NotInTime(_))));
    }
}
