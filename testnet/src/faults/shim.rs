//! Faults for one process: its clocks move or break, its name server is silent, or it is killed right after a chosen sync of its
//! disk. And what one cannot see afterwards: each file that it makes, as it is at that moment, and each mode that it gives to one.
//!
//! A small library in C (`shim.c`) is loaded before libc (`LD_PRELOAD`), so the daemon is the program that users run, without a
//! hook for tests. It gets from libc what it would get on such a machine.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::base::error::Error;

const SOURCE: &str = include_str!("shim.c");

/// The library, built by the compiler that this workspace needs anyway.
#[derive(Debug)]
pub struct Shim {
    directory: TempDir,
}

/// Variables for the environment of a daemon.
pub type Variables = Vec<(String, String)>;

/// A clock of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// What people read; may be set forward and back.
    Wall = 0,
    /// Time since the machine started, which goes on while it sleeps. The clock that stops meanwhile is left alone, so
    /// moving this one forward is to a process what a suspend is.
    Boot = 1,
}

/// How far the clocks of one daemon are off.
#[derive(Debug)]
pub struct Clocks {
    file: File,
    path: PathBuf,
}

/// When a daemon shall die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Death<'a> {
    /// Right after this many syncs since it started, from 1.
    pub at_sync: u32,
    /// Only those of files whose path contains this count.
    pub of: &'a str,
}

impl Shim {
    /// Compiles the library into a temporary directory.
    ///
    /// # Errors
    /// If there is no C compiler, or what it says.
    pub fn build() -> Result<Self, Error> {
        let directory = TempDir::with_prefix("quorate-shim-").map_err(Error::io("make a temporary directory"))?;
        let source = directory.path().join("shim.c");
        fs::write(&source, SOURCE).map_err(Error::io("write shim.c"))?;
        let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        compiler.args(["-O2", "-shared", "-fPIC", "-o"]).arg(directory.path().join("shim.so")).arg(&source).arg("-ldl");
        let said = compiler.output().map_err(Error::io("run the C compiler"))?;
        match said.status.success() {
            true => Ok(Self { directory }),
            false => {
                Err(Error::io("compile shim.c")(io::Error::other(String::from_utf8_lossy(&said.stderr).into_owned())))
            }
        }
    }

    /// Clocks that are right, to be moved while the daemon that `name` names runs.
    ///
    /// # Errors
    /// What the file system says.
    pub fn clocks(&self, name: &str) -> Result<Clocks, Error> {
        let path = self.directory.path().join(format!("clocks-{name}"));
        let file = File::create(&path).and_then(|file| file.set_len(16).map(|()| file));
        Ok(Clocks { file: file.map_err(Error::io(path.display().to_string()))?, path })
    }

    /// The environment of a daemon whose clocks are these.
    pub fn with_clocks(&self, clocks: &Clocks) -> Variables {
        self.variables(&[("SHIM_CLOCKS", clocks.path.display().to_string())])
    }

    /// The environment of a daemon whose threads panic once the file `breaks` is there, because their clock fails.
    pub fn with_broken_clock(&self, breaks: &Path) -> Variables {
        self.variables(&[("SHIM_BREAKS", breaks.display().to_string())])
    }

    /// The environment of a daemon that dies like this, and writes to `note` when it does.
    pub fn with_death(&self, death: Death<'_>, note: &Path) -> Variables {
        let Death { at_sync, of } = death;
        let (at, of, note) = (at_sync.to_string(), of.to_owned(), note.display().to_string());
        self.variables(&[("SHIM_DIE_AT", at), ("SHIM_DIE_IN", of), ("SHIM_DIED_AT", note)])
    }

    /// The environment of daemons that may be ordered to die while they run ([`order_death`]).
    pub fn with_orders(&self, orders: &Path, note: &Path) -> Variables {
        let (orders, note) = (orders.display().to_string(), note.display().to_string());
        self.variables(&[("SHIM_ORDERS", orders), ("SHIM_DIED_AT", note)])
    }

    /// The environment of a process whose name server never answers.
    pub fn with_silent_names(&self) -> Variables {
        self.variables(&[("SHIM_SILENT_NAMES", "1".to_owned())])
    }

    /// The environment of processes that note in `notes` what files they make, and what modes they give to files ([`made`]).
    pub fn with_notes(&self, notes: &Path) -> Variables {
        self.variables(&[("SHIM_MADE", notes.display().to_string())])
    }

    fn variables(&self, own: &[(&str, String)]) -> Variables {
        let library = self.directory.path().join("shim.so").display().to_string();
        let all = own.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        all.chain([("LD_PRELOAD".to_owned(), library)]).collect()
    }
}

/// Orders the process `pid`, whose environment names the file `orders`, to die like this; syncs count from now on. The order
/// takes the place of the one before.
///
/// # Errors
/// What the file system says.
pub fn order_death(orders: &Path, pid: u32, death: Death<'_>) -> Result<(), Error> {
    let next = orders.with_extension("next");
    let written = fs::write(&next, format!("{pid} {} {}\n", death.at_sync, death.of));
    written.and_then(|()| fs::rename(&next, orders)).map_err(Error::io(orders.display().to_string()))
}

/// Something that a process made in a file system, or gave another mode, as it was right after that call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Whether it was there before, and this call changed its mode.
    pub was_there: bool,
    /// `file`, `directory` or `socket`.
    pub what: String,
    /// The bits of its mode that say who may do what.
    pub mode: u32,
    pub uid: u32,
    /// Device and inode: it may get another name.
    pub place: (u64, u64),
    /// The path as the process gave it.
    pub path: PathBuf,
}

/// What processes with [`Shim::with_notes`] have made or given another mode, in order.
///
/// # Errors
/// If the notes cannot be read, or are none.
pub fn made(notes: &Path) -> io::Result<Vec<Made>> {
    fs::read_to_string(notes)?.lines().map(|line| parse_made(line).ok_or_else(|| io::Error::other(line))).collect()
}

fn parse_made(line: &str) -> Option<Made> {
    let mut words = line.splitn(7, ' ');
    let was_there = words.next()? == "mode";
    let what = words.next()?.to_owned();
    let mode = u32::from_str_radix(words.next()?, 8).ok()?;
    let uid = words.next()?.parse().ok()?;
    let place = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Made { was_there, what, mode, uid, place, path: words.next()?.into() })
}

impl Clocks {
    /// Sets a clock forward, from what the real one says.
    ///
    /// # Errors
    /// What the file system says.
    pub fn forward(&self, clock: Clock, by: Duration) -> Result<(), Error> {
        self.set(clock, i64::try_from(by.as_nanos()).unwrap_or(i64::MAX))
    }

    /// Sets a clock back, from what the real one says.
    ///
    /// # Errors
    /// What the file system says.
    pub fn back(&self, clock: Clock, by: Duration) -> Result<(), Error> {
        self.set(clock, -i64::try_from(by.as_nanos()).unwrap_or(i64::MAX))
    }

    fn set(&self, clock: Clock, nanos: i64) -> Result<(), Error> {
        self.file.write_all_at(&nanos.to_ne_bytes(), 8 * clock as u64).map_err(Error::io("move a clock"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Stdio;

    use super::*;

    /// What `date` says in a process with these variables.
    fn year(variables: &Variables) -> i64 {
        let mut date = Command::new("date");
        date.arg("+%Y").envs(variables.iter().map(|(name, value)| (name, value)));
        String::from_utf8_lossy(&date.output().expect("runs").stdout).trim().parse().expect("a year")
    }

    #[test]
    fn a_clock_is_where_it_was_set() {
        let shim = Shim::build().expect("compiles");
        let clocks = shim.clocks("n1").expect("a file");
        let variables = shim.with_clocks(&clocks);
        let (now, two_years) = (year(&Vec::new()), Duration::from_secs(2 * 365 * 86_400 + 86_400));
        assert_eq!(year(&variables), now);
        clocks.forward(Clock::Wall, two_years).expect("moves");
        assert!(year(&variables) >= now + 2);
        clocks.back(Clock::Wall, two_years).expect("moves");
        assert!(year(&variables) <= now - 2);
    }

    #[test]
    fn a_process_dies_right_after_the_sync_that_was_chosen() {
        let shim = Shim::build().expect("compiles");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (note, file) = (dir.path().join("note"), dir.path().join("file"));
        let run = |at_sync, of| {
            let mut sync = Command::new("sh");
            sync.args(["-c", "echo 1 > \"$0\" && sync \"$0\" && sync \"$0\" && echo alive"]).arg(&file);
            let variables = shim.with_death(Death { at_sync, of }, &note);
            let output = sync.envs(variables).output().expect("runs");
            (String::from_utf8_lossy(&output.stdout).into_owned(), fs::read_to_string(&note).unwrap_or_default())
        };
        assert_eq!(run(1, "elsewhere"), ("alive\n".to_owned(), String::new()));
        assert_eq!(run(2, "/file"), ("alive\n".to_owned(), String::new()), "each process counts its own");
        assert_eq!(run(1, "/file"), (String::new(), format!("sync 1, of {}\n", file.display())));
    }

    #[test]
    fn a_process_dies_when_it_is_ordered_to() {
        let shim = Shim::build().expect("compiles");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [note, file, orders] = ["note", "file", "orders"].map(|name| dir.path().join(name));
        fs::write(&file, "").expect("our own directory");
        // A shell that becomes `sync`, under the number that it has already.
        let run = |chosen: fn(u32) -> u32| {
            let mut sync = Command::new("sh");
            sync.args(["-c", "read go && exec sync \"$0\""]).arg(&file).stdin(Stdio::piped());
            let mut sync = sync.envs(shim.with_orders(&orders, &note)).spawn().expect("runs");
            order_death(&orders, chosen(sync.id()), Death { at_sync: 1, of: "/file" }).expect("written");
            sync.stdin.take().expect("piped").write_all(b"go\n").expect("it reads");
            (sync.wait().expect("ends").success(), note.exists())
        };
        assert_eq!(run(|pid| pid + 1), (true, false), "another one was meant");
        assert_eq!(run(|pid| pid), (false, true));
    }

    /// A file that exists for a moment only, its second mode, a directory, and a file that is there already. Mutated: without one of
    /// the calls, its line is missing.
    #[test]
    fn what_a_process_makes_is_seen_as_it_is_at_that_moment() {
        let shim = Shim::build().expect("compiles");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (notes, old) = (dir.path().join("notes"), dir.path().join("old"));
        fs::write(&old, "").expect("our own directory");
        let mut shell = Command::new("sh");
        let script = "cd \"$0\" && umask 027 && mkdir d && umask 0 && : > d/f && chmod 600 d/f && rm d/f && : >> old";
        let output = shell.args(["-c", script]).arg(dir.path()).envs(shim.with_notes(&notes)).output().expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let made = made(&notes).expect("notes");
        let seen = |was_there| -> Vec<_> {
            let seen = made.iter().filter(|made| made.was_there == was_there);
            seen.map(|made| (made.what.as_str(), made.mode, made.path.to_str())).collect()
        };
        assert_eq!(seen(false), [("directory", 0o750, Some("d")), ("file", 0o666, Some("d/f"))]);
        assert_eq!(seen(true), [("file", 0o600, Some("d/f"))]);
    }
}
