//! `doctor`: finds what weakens the promises of Quorate on this machine.
//!
//! Each check is a function of what was read. Its result is one line: fine, or a warning that says what to do. The
//! command changes nothing, and sends nothing to other machines. If something cannot be read, that is also a warning.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use quorate_client::credential;
use quorate_client::wire::SecretMemory;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::args::{Doctor, Format};
use crate::failure::Failure;
use crate::reach::cluster::token_path;
use crate::reach::daemon;
use crate::terminal::output;
use crate::{Session, exit};

/// The beginning of a file that tells whether it is a token file.
const PREFIX_BYTES_MAX: u64 = 32;
/// The data directory of a daemon unless the user or the daemon names another: that of the unit in docs/OPERATING.md.
const DATA: &str = "/var/lib/quorate";
/// Size of the locked memory that the daemon requests for secrets.
const ARENA_BYTES: u64 = 1 << 20;
/// File systems that write a changed block to a new place and may keep the old block for any time.
const COPY_ON_WRITE: [&str; 6] = ["btrfs", "zfs", "bcachefs", "overlay", "nilfs2", "apfs"];
/// Programs that synchronise the clock. The kernel cuts their names to 15 letters.
const CLOCK_KEEPERS: [&str; 6] = ["chronyd", "ntpd", "ntpd-rs", "openntpd", "systemd-timesyn", "ptp4l"];
/// How long systemd may take to answer about the clock.
const CLOCK_MAX: Duration = Duration::from_secs(2);
/// Most files of a data directory that are searched for a token.
const FILES_MAX: usize = 1_000;

/// What the checks examine, and where they read it.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The path of procfs: `/proc`.
    pub proc: PathBuf,
    /// `None` if no daemon answers at the socket.
    pub daemon: Option<Daemon>,
    /// The data directory of the daemon.
    pub data: PathBuf,
    pub socket: PathBuf,
    /// The token file of the user. It may not exist.
    pub token: PathBuf,
    /// Whether the clock is synchronised; `None` if the system does not say.
    pub clock: Option<bool>,
}

#[derive(Debug, Clone, Copy)]
pub struct Daemon {
    pub pid: i32,
    /// Where it keeps secrets in memory.
    pub memory: SecretMemory,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub check: &'static str,
    pub found: String,
    /// What to do; `None` if all is well.
    pub advice: Option<String>,
}

impl Finding {
    fn fine(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, found: found.into(), advice: None }
    }

    fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, found: found.into(), advice: Some(advice.into()) }
    }

    pub fn is_fine(&self) -> bool {
        self.advice.is_none()
    }
}

pub(crate) async fn doctor(session: &mut Session<'_>, options: Doctor) -> Result<u8, Failure> {
    let asked = daemon::status_and_process(session).await;
    if let Err(failure) = &asked {
        session.note(&format!("quorate: {}", failure.message));
    }
    let daemon = asked.ok();
    let data = daemon.as_ref().map(|(status, _)| PathBuf::from(&status.data_directory));
    let machine = Machine {
        proc: "/proc".into(),
        daemon: daemon.and_then(|(status, pid)| Some(Daemon { pid: pid?, memory: status.secret_memory })),
        data: options.data.or(data).unwrap_or_else(|| DATA.into()),
        socket: session.common.socket.clone(),
        token: token_path(session)?,
        clock: clock_of_the_system().await,
    };
    let findings = examine(&machine);
    let result = match session.common.output {
        Format::Json => output::pretty(&json(&findings)),
        Format::Text => findings.iter().map(line).collect(),
    };
    session.result(result.as_bytes())?;
    Ok(if findings.iter().all(Finding::is_fine) { exit::DONE } else { exit::FAILED })
}

fn line(finding: &Finding) -> String {
    let Finding { check, found, advice } = finding;
    match advice {
        None => format!("ok       {check:<14}  {}\n", output::printable(found)),
        Some(advice) => format!("warning  {check:<14}  {}: {advice}\n", output::printable(found)),
    }
}

/// The findings as JSON.
pub fn json(findings: &[Finding]) -> Value {
    let finding = |finding: &Finding| {
        json!({
            "check": finding.check,
            "ok": finding.is_fine(),
            "found": finding.found,
            "advice": finding.advice,
        })
    };
    Value::Array(findings.iter().map(finding).collect())
}

/// Whether systemd says that the clock is synchronised; `None` without systemd.
async fn clock_of_the_system() -> Option<bool> {
    let mut command = tokio::process::Command::new("timedatectl");
    command.args(["show", "--property=NTPSynchronized", "--value"]).kill_on_drop(true);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let output = timeout(CLOCK_MAX, command.output()).await.ok()?.ok()?;
    match String::from_utf8_lossy(&output.stdout).trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// Runs every check. Each gives one finding.
pub fn examine(machine: &Machine) -> Vec<Finding> {
    let Machine { proc, daemon, data, socket, token, clock } = machine;
    let read = |name: &str| fs::read_to_string(proc.join(name)).map_err(|error| format!("{name}: {error}"));
    let limits = |check, judge: &dyn Fn(&str, Daemon) -> Finding| match daemon {
        None => Finding::warning(check, "no daemon answers at the socket", "start quorated, or name it: --socket FILE"),
        Some(daemon) => match read(&format!("{}/limits", daemon.pid)) {
            Ok(limits) => judge(&limits, *daemon),
            Err(error) => unreadable(check, &error),
        },
    };
    let pattern = read("sys/kernel/core_pattern").unwrap_or_default();
    vec![
        limits("secret memory", &|limits, daemon| secret_memory(limits, daemon.memory)),
        read("swaps")
            .map_or_else(|error| unreadable("swap", &error), |swaps| swap(&swaps, daemon.map(|daemon| daemon.memory))),
        limits("core dumps", &|limits, _| core_dumps(limits, pattern.trim())),
        file_modes("data directory", &[data.clone(), data.join("vault"), data.join("state"), data.join("alarms")]),
        file_modes("socket", std::slice::from_ref(socket)),
        file_modes("token", std::slice::from_ref(token)),
        token_place(token, data),
        clock_sync(*clock, &commands(proc)),
        read("mounts").map_or_else(|error| unreadable("file system", &error), |mounts| file_system(&mounts, data)),
    ]
}

fn unreadable(check: &'static str, error: &str) -> Finding {
    Finding::warning(check, error, "run this as the user that runs quorated, on the machine itself")
}

/// Checks that secrets lie in memory that is neither swapped nor dumped, and that the limit of locked memory is high
/// enough.
pub fn secret_memory(limits: &str, memory: SecretMemory) -> Finding {
    const CHECK: &str = "secret memory";
    let room = limit(limits, "Max locked memory");
    let enough = room.is_some_and(|bytes| bytes >= ARENA_BYTES);
    let advice = "raise RLIMIT_MEMLOCK of quorated to 8 MiB (LimitMEMLOCK=8M) and start it again";
    match memory {
        SecretMemory::Ordinary => Finding::warning(CHECK, "secrets lie in ordinary memory", advice),
        _ if !enough => Finding::warning(CHECK, "the limit of locked memory is below 1 MiB", advice),
        SecretMemory::Hidden => Finding::fine(CHECK, "hidden from all other processes (memfd_secret)"),
        SecretMemory::Locked => Finding::fine(CHECK, "locked, and kept out of core dumps"),
    }
}

/// Checks for swap, which copies memory to a disk, where it stays. Locked memory is never swapped.
pub fn swap(swaps: &str, memory: Option<SecretMemory>) -> Finding {
    const CHECK: &str = "swap";
    let devices: Vec<_> = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    let named = devices.join(", ");
    match memory {
        _ if devices.is_empty() => Finding::fine(CHECK, "off"),
        Some(SecretMemory::Hidden | SecretMemory::Locked) => {
            Finding::fine(CHECK, format!("{named} in use; secrets lie in locked memory"))
        }
        Some(SecretMemory::Ordinary) | None => {
            let advice = "switch it off (swapoff -a), encrypt it, or let quorated lock memory (LimitMEMLOCK=8M)";
            Finding::warning(CHECK, format!("{named} in use, and may take secrets"), advice)
        }
    }
}

/// Checks that there are no core dumps, which copy memory to a disk. The daemon sets its own limit to zero. Another
/// limit means that it could not.
pub fn core_dumps(limits: &str, pattern: &str) -> Finding {
    const CHECK: &str = "core dumps";
    let goes_to = if pattern.is_empty() { "core".to_owned() } else { output::printable(pattern) };
    match limit(limits, "Max core file size") {
        Some(0) => Finding::fine(CHECK, "the daemon forbids its own"),
        limit => {
            let size = limit.map_or_else(|| "without a limit".to_owned(), |bytes| format!("of {bytes} bytes"));
            let found = format!("cores {size} would go to {goes_to}");
            Finding::warning(CHECK, found, "set LimitCORE=0 for quorated; its log says why it could not")
        }
    }
}

/// The soft limit `name` in `/proc/PID/limits`; `None` if there is none, `u64::MAX` if it is unlimited.
fn limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// Checks that only the owner may open `paths`. A path that does not exist is fine.
pub fn file_modes(check: &'static str, paths: &[PathBuf]) -> Finding {
    let (mut seen, mut open) = (0, Vec::new());
    for path in paths {
        match fs::metadata(path) {
            Ok(metadata) => {
                seen += 1;
                let mode = metadata.permissions().mode() & 0o7777;
                if mode & 0o077 != 0 {
                    open.push(format!("{} has mode {mode:04o}", path.display()));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return unreadable(check, &format!("{}: {error}", path.display())),
        }
    }
    let first = paths.first().map_or_else(String::new, |path| path.display().to_string());
    match (open.is_empty(), seen) {
        (false, _) => Finding::warning(check, open.join(", "), "chmod go= it, and find out who may have read it"),
        (true, 0) => Finding::fine(check, format!("there is none at {first}")),
        (true, _) => Finding::fine(check, format!("only its owner may open {first}")),
    }
}

/// Checks that no token lies in the data directory. A thief of that disk could use the token to ask for everything.
pub fn token_place(token: &Path, data: &Path) -> Finding {
    const CHECK: &str = "token place";
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let inside = |path: &Path| real(path).starts_with(real(data));
    let begins_like_a_token = |path: &Path| {
        let mut begin = Vec::new();
        let read = fs::File::open(path).and_then(|file| file.take(PREFIX_BYTES_MAX).read_to_end(&mut begin));
        read.is_ok() && credential::begins_like_one(&begin)
    };
    let entries = fs::read_dir(data).into_iter().flatten().flatten().take(FILES_MAX).map(|entry| entry.path());
    let stray = entries.filter(|path| path.is_file()).find(|path| begins_like_a_token(path));
    match stray.or_else(|| Some(token.to_owned()).filter(|path| path.exists() && inside(path))) {
        Some(path) => {
            let found = format!("{} lies in the data directory", path.display());
            Finding::warning(CHECK, found, "move it to another machine: a thief of this disk could ask for everything")
        }
        None => Finding::fine(CHECK, format!("none in {}", data.display())),
    }
}

/// Checks that the clock is synchronised. Only the expiry of invitations depends on it, and people need it to compare
/// logs.
pub fn clock_sync(synchronised: Option<bool>, commands: &[String]) -> Finding {
    const CHECK: &str = "clock";
    let advice =
        "let chrony or systemd-timesyncd synchronise it: the expiry of invitations and the times in logs depend on it";
    let keeper = commands.iter().find(|command| CLOCK_KEEPERS.contains(&command.as_str()));
    match (synchronised, keeper) {
        (Some(true), _) => Finding::fine(CHECK, "synchronised"),
        (Some(false), _) => Finding::warning(CHECK, "not synchronised", advice),
        (None, Some(keeper)) => Finding::fine(CHECK, format!("kept by {keeper}")),
        (None, None) => Finding::warning(CHECK, "no program synchronises it", advice),
    }
}

/// The command names of all processes.
fn commands(proc: &Path) -> Vec<String> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_process = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit());
    let command = |path: PathBuf| fs::read_to_string(path.join("comm")).ok().map(|name| name.trim().to_owned());
    entries.filter(is_process).filter_map(command).collect()
}

/// Checks that the file system removes from the disk what is erased in the data directory.
pub fn file_system(mounts: &str, data: &Path) -> Finding {
    const CHECK: &str = "file system";
    let data = fs::canonicalize(data).unwrap_or_else(|_| data.to_owned());
    let mount = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        Some((PathBuf::from(unescape(fields.next()?)), fields.next()?.to_owned()))
    };
    // The deepest mount. Of two mounts at the same place, the later one counts.
    let over = mounts.lines().filter_map(mount).filter(|(at, _)| data.starts_with(at));
    let Some((at, kind)) = over.max_by_key(|(at, _)| at.components().count()) else {
        return unreadable(CHECK, &format!("no mount for {}", data.display()));
    };
    let found = format!("{} at {}", kind, at.display());
    match COPY_ON_WRITE.contains(&kind.as_str()) {
        true => Finding::warning(
            CHECK,
            format!("{found} keeps old copies of what is erased"),
            "put the data directory on ext4 or xfs, and take no snapshots of it",
        ),
        false => Finding::fine(CHECK, found),
    }
}

/// Decodes a field of `/proc/mounts`, which writes spaces and some other characters as three octal digits.
fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => text + &char::from(code).to_string() + &part[3..],
            None => text + "\\" + part,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max core file size        0                    0                    bytes     \n\
                      Max locked memory         unlimited            unlimited            bytes     \n";
        assert_eq!(
            (limit(limits, "Max core file size"), limit(limits, "Max locked memory")),
            (Some(0), Some(u64::MAX))
        );
        assert_eq!(limit(limits, "Max nice priority"), None);
    }

    #[test]
    fn the_deepest_and_latest_mount_counts() {
        let mounts = "/dev/a / ext4 rw 0 0\n/dev/b /srv btrfs rw 0 0\n/dev/c /srv/my\\040data xfs rw 0 0\n";
        let kind = |path: &str| file_system(mounts, Path::new(path)).found;
        assert_eq!(kind("/srv/my data/quorate"), "xfs at /srv/my data");
        assert_eq!(kind("/srvother"), "ext4 at /");
        assert!(!file_system(mounts, Path::new("/srv/quorate")).is_fine());
        let covered = format!("{mounts}/dev/d /srv ext4 rw 0 0\n");
        assert!(file_system(&covered, Path::new("/srv/quorate")).is_fine(), "another one was mounted over it");
    }

    #[test]
    fn every_line_says_what_to_do_or_that_all_is_well() {
        assert_eq!(line(&Finding::fine("swap", "off")), "ok       swap            off\n");
        assert_eq!(line(&Finding::warning("swap", "on", "off with it")), "warning  swap            on: off with it\n");
    }
}
