//! The daemon as the tools of an operator meet it: signals, a disk that is mounted late, files of another user, addresses of two
//! kinds.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use quorate_client::wire::Phase;
use quorate_testnet::procs::{Binaries, Finished, Lifetime, Process, Tool, local_status};
use quorate_testnet::{Special, wait_until};
use tempfile::TempDir;

use crate::harness::commands::printed_invitations;
use crate::harness::documents::read;
use crate::harness::{PATIENCE, TestCluster};

/// One daemon without a vault, in a directory of its own.
struct Daemon {
    process: Process,
    directory: TempDir,
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (data, log) = (directory.path().join("data"), directory.path().join("log"));
        let command = quorated(&data, &directory.path().join("socket"), "127.0.0.1:0");
        let process = Process::start(command, &data, &log, Lifetime::WithUs).expect("starts");
        let daemon = Self { process, directory };
        wait_until("its socket", PATIENCE, || daemon.phase()).expect("in time");
        daemon
    }

    fn phase(&self) -> Option<Phase> {
        local_status(&self.directory.path().join("socket")).ok().map(|status| status.public.phase)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).expect("its log")
    }

    fn sends(&self, signal: i32) {
        let sent = Command::new("kill").args([format!("-{signal}"), self.process.pid().to_string()]).status();
        assert!(sent.expect("runs").success(), "signal {signal}");
    }

    fn ends(mut self) -> (ExitStatus, String) {
        let ended = wait_until("its end", PATIENCE, || self.process.ended()).expect("in time");
        (ended, self.log())
    }

    /// Which signals it catches or ignores: a bit each in `/proc/PID/status`.
    fn handled(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid())).expect("it runs");
        let mask = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says it");
            u64::from_str_radix(line.trim(), 16).expect("a mask")
        };
        mask("SigCgt:") | mask("SigIgn:")
    }
}

fn quorated(data: &Path, socket: &Path, listen: &str) -> Command {
    let mut command = Command::new(Binaries::find().expect("built").quorated);
    command.arg("--data").arg(data).arg("--socket").arg(socket).args(["--listen", listen, "--name", "n1"]);
    command.args(["--advertise", "127.0.0.1:7250"]);
    command
}

/// By number, as Linux has them on x86-64 and AArch64.
const STOP: [(i32, &str); 3] = [(15, "SIGTERM"), (2, "SIGINT"), (3, "SIGQUIT")];
const IGNORED: [(i32, &str); 10] = [
    (1, "SIGHUP"),
    (10, "SIGUSR1"),
    (12, "SIGUSR2"),
    (14, "SIGALRM"),
    (26, "SIGVTALRM"),
    (27, "SIGPROF"),
    (29, "SIGIO"),
    (30, "SIGPWR"),
    (25, "SIGXFSZ"),
    (16, "SIGSTKFLT"),
];
/// Ignored by Rust's runtime, and by default: SIGPIPE, and those after it.
const HARMLESS: [i32; 5] = [13, 17, 18, 23, 28];
const DEADLY: [(i32, &str); 9] = [
    (9, "SIGKILL"),
    (6, "SIGABRT"),
    (11, "SIGSEGV"),
    (7, "SIGBUS"),
    (4, "SIGILL"),
    (8, "SIGFPE"),
    (5, "SIGTRAP"),
    (31, "SIGSYS"),
    (24, "SIGXCPU"),
];
/// SIGSTOP, SIGTSTP, SIGTTIN and SIGTTOU hold a process still until SIGCONT.
const HOLD: [i32; 4] = [19, 20, 21, 22];
/// The C library keeps them for itself, and no tool sends them.
const RESERVED: [i32; 2] = [32, 33];

/// Whatever an operator's tools send, a node stays, or it stops in order; what stays deadly is named. Mutated: each of these
/// signals whose line is deleted from `base/signals.rs` ends the daemon, or is not named in its log.
#[test]
fn no_signal_of_an_ordinary_tool_ends_a_node() {
    let daemon = Daemon::start();
    let real_time: Vec<_> = (34..=64).map(|number| (number, format!("signal {number}"))).collect();
    let named = IGNORED.into_iter().chain(real_time.iter().map(|(number, name)| (*number, name.as_str())));
    for (place, (number, name)) in named.clone().enumerate() {
        daemon.sends(number);
        // One place in the program says no more lines in a minute.
        if place < IGNORED.len() {
            let said = || daemon.log().contains(&format!("{name} does nothing: ")).then_some(());
            wait_until(format!("{name} to be named"), PATIENCE, said).expect("in time");
        }
    }
    HARMLESS.iter().for_each(|&number| daemon.sends(number));
    assert_eq!(daemon.phase(), Some(Phase::Uninitialised), "{}", daemon.log());

    // No signal is forgotten.
    let handled = daemon.handled();
    let is_in = |list: &[(i32, &str)], number| list.iter().any(|(other, _)| *other == number);
    for number in 1..=64 {
        let is_handled = handled >> (number - 1) & 1 == 1;
        let expected = is_in(&STOP, number) || named.clone().any(|(other, _)| other == number) || number == 13;
        let known = expected || HARMLESS.contains(&number) || HOLD.contains(&number) || RESERVED.contains(&number);
        assert!(known || is_in(&DEADLY, number), "signal {number} is in no list");
        // Rust itself catches SIGSEGV and SIGBUS, to tell a stack that overflows.
        assert!(is_handled == expected || [7, 11].contains(&number) || RESERVED.contains(&number), "signal {number}");
    }

    for (number, name) in STOP {
        let daemon = Daemon::start();
        daemon.sends(number);
        let (ended, log) = daemon.ends();
        assert_eq!(ended.code(), Some(0), "{name}: {log}");
        assert!(log.contains(name) && log.contains("stopping"), "{log}");
    }
    // The control: a deadly one is.
    daemon.sends(24);
    assert_eq!(daemon.ends().0.signal(), Some(24));

    let page = read("docs/OPERATING.md");
    for (_, name) in STOP.into_iter().chain(IGNORED).chain(DEADLY) {
        assert!(page.contains(&format!("`{name}`")), "OPERATING does not say what {name} does");
    }
}

/// What a daemon has on its disk.
const ON_DISK: [&str; 4] = ["lock", "state", "alarms", "vault"];

fn carry(from: &Path, to: &Path) {
    for name in ON_DISK.into_iter().filter(|name| from.join(name).exists()) {
        fs::rename(from.join(name), to.join(name)).expect("on one file system");
    }
}

/// A member starts before its disk is mounted. Mutated: without the wait it calls itself `uninitialised`, for ever.
#[test]
fn a_member_waits_until_its_disk_is_mounted() {
    let mut cluster = TestCluster::found();
    let data = cluster.testnet.directory().data("n3");
    let disk = tempfile::tempdir_in(cluster.testnet.directory().path()).expect("elsewhere");
    cluster.testnet.kill("n3").expect("dies");
    carry(&data, disk.path());
    cluster.start(&["n3"]);
    let status = cluster.testnet.status("n3").expect("it answers");
    assert_eq!(status.public.phase, Phase::Uninitialised, "the control: without the setting it starts as a new node");

    cluster.testnet.kill("n3").expect("dies");
    let made = || ON_DISK.into_iter().filter(|name| data.join(name).exists()).collect::<Vec<_>>();
    assert_eq!(made(), ["lock"], "the control: it makes something");
    fs::remove_file(data.join("lock")).expect("ours");
    let expecting = Special { arguments: vec!["--expect-member".to_owned()], ..Special::default() };
    let log = cluster.testnet.directory().log("n3");
    let waits = |cluster: &mut TestCluster| {
        let begins = fs::read(&log).expect("its log").len();
        cluster.testnet.launch("n3", &expecting).expect("starts");
        cluster.until("it to say what it waits for", || {
            let said = fs::read(&log).expect("its log")[begins..].to_vec();
            String::from_utf8_lossy(&said).contains("this node is a member (expect_member): waiting").then_some(())
        });
    };
    waits(&mut cluster);
    assert_eq!(made(), [""; 0], "it makes nothing below the disk");
    cluster.testnet.terminate("n3").expect("it can be stopped meanwhile");
    waits(&mut cluster);
    carry(disk.path(), &data);
    cluster.testnet.wait_serving(&["n3"]).expect("it sees its vault, and serves");
}

/// The daemon of a user, from a copy of the program that every user can start.
struct ByUser {
    directory: TempDir,
}

const USER: u32 = 65_534;

impl ByUser {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("ours");
        let program = directory.path().join("quorated");
        fs::copy(Binaries::find().expect("built").quorated, &program).expect("copied");
        Self { directory }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// `None`: as root.
    fn command(&self, user: Option<u32>) -> Command {
        let program = self.directory.path().join("quorated");
        let data = self.data();
        let daemon = quorated(&data, &data.join("quorated.sock"), "127.0.0.1:0");
        let mut command = match user {
            None => Command::new(program),
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()]);
                command.arg(program);
                command
            }
        };
        command.args(daemon.get_args());
        command
    }

    /// Starts it, waits until it serves its socket, and stops it.
    fn runs(&self, user: Option<u32>) {
        let (data, log) = (self.data(), self.directory.path().join("log"));
        let mut process = Process::start(self.command(user), &data, &log, Lifetime::WithUs).expect("starts");
        let serves = wait_until("its socket", PATIENCE, || {
            let ended = process.ended().map(Err);
            ended.or_else(|| local_status(&data.join("quorated.sock")).ok().map(Ok))
        });
        serves
            .expect("in time")
            .unwrap_or_else(|ended| panic!("{ended}: {}", fs::read_to_string(&log).expect("a log")));
        process.terminate(PATIENCE).expect("stops");
    }

    fn refused(&self, user: Option<u32>) -> String {
        let Finished { code, stderr, .. } = ended(self.command(user));
        assert_eq!(code, Some(1), "{stderr}");
        assert!(!stderr.contains("old copy"), "{stderr}");
        stderr
    }
}

fn ended(command: Command) -> Finished {
    Tool::start(command, b"").expect("runs").outcome(PATIENCE).expect("ends")
}

/// Root started the daemon once, by hand. Mutated: without the comparison of owners the user's daemon says `Permission denied`, and
/// speaks of the disk.
#[test]
fn files_of_another_user_are_named_with_the_command_that_mends_them() {
    // For any user: a directory that belongs to another one.
    let is_root = fs::metadata("/proc/self").map(|this| std::os::unix::fs::MetadataExt::uid(&this)).expect("ours") == 0;
    if !is_root {
        let stderr = ended(quorated(Path::new("/usr"), Path::new("/nonexistent/socket"), "127.0.0.1:0")).stderr;
        assert!(stderr.contains("/usr belongs to root, and quorated runs as "), "{stderr}");
        return;
    }
    let by = ByUser::new();
    let data = by.data();
    by.runs(None);
    let give = |path: &Path, user: u32| chown(path, Some(user), Some(user)).expect("root may");
    give(&data, USER);

    let stderr = by.refused(Some(USER));
    let mend = stderr.lines().find_map(|line| Some(&line[line.find("chown -R ")?..])).expect("a command").to_owned();
    assert!(stderr.contains(&format!("{} belongs to root", data.join("lock").display())), "{stderr}");
    // Root's own start would leave more such files.
    let stderr = by.refused(None);
    assert!(stderr.contains(&format!("{} belongs to ", data.display())) && stderr.contains("runs as root"), "{stderr}");

    // The disk's own directory is no file of the daemon.
    fs::create_dir(data.join("lost+found")).expect("root may");
    fs::set_permissions(data.join("lost+found"), Permissions::from_mode(0o700)).expect("root may");
    let mended = Command::new("sh").args(["-c", &mend]).status().expect("runs");
    assert!(mended.success(), "{mend}");
    give(&data.join("lost+found"), 0);
    by.runs(Some(USER));

    // Deep inside, where the database would report it.
    let deep = data.join("state/raft");
    fs::create_dir_all(&deep).expect("root may");
    [&data.join("state"), &deep].into_iter().for_each(|path| give(path, USER));
    by.runs(Some(USER));
    fs::write(deep.join("CURRENT"), b"").expect("root may");
    fs::set_permissions(deep.join("CURRENT"), Permissions::from_mode(0o600)).expect("root may");
    let stderr = by.refused(Some(USER));
    assert!(stderr.contains(&format!("{} belongs to root", deep.join("CURRENT").display())), "{stderr}");
    assert!(stderr.contains(&mend), "{stderr}");
}

/// A founder that listens on IPv6 only, and one on IPv4 only. Mutated: without the comparison the step is `no answer in time`.
#[test]
fn a_founder_says_that_an_address_is_of_the_other_kind() {
    if UdpSocket::bind("[::1]:0").is_err() {
        // Here, too, the reason is said.
        let directory = tempfile::tempdir().expect("a directory");
        let data = directory.path().join("data");
        let stderr = ended(quorated(&data, &directory.path().join("socket"), "[::1]:7250")).stderr;
        assert!(stderr.contains("no IPv6") || stderr.contains("does not have the address"), "{stderr}");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let address = |ip: &str| {
        let free = UdpSocket::bind(format!("{ip}:0")).and_then(|socket| socket.local_addr());
        free.expect("an address").to_string()
    };
    let start = |name: &str, listen: &str| {
        let data = at(&format!("{name}-data"));
        let socket = at(&format!("{name}.sock"));
        let mut command = Command::new(Binaries::find().expect("built").quorated);
        command.arg("--data").arg(&data).arg("--socket").arg(&socket).args(["--listen", listen, "--name", name]);
        let process = Process::start(command, &data, &at(&format!("{name}.log")), Lifetime::WithUs).expect("starts");
        wait_until("its socket", PATIENCE, || local_status(&socket).ok()).expect("in time");
        (process, socket)
    };
    let (first, second) = (start("n1", &address("127.0.0.1")), start("n2", &address("[::1]")));
    let quorate = |arguments: &[&OsStr], input: &str| {
        let mut command = Command::new(Binaries::find().expect("built").quorate);
        command.args(arguments).env("HOME", directory.path());
        Tool::start(command, input.as_bytes()).expect("runs")
    };
    let founders = ["cluster", "init", "--founders", "2", "--accept-no-redundancy", "--socket"].map(OsStr::new);
    let init = quorate(&[&founders[..], &[first.1.as_os_str()]].concat(), "");
    let invitation = wait_until("an invitation", PATIENCE, || printed_invitations(&init).pop()).expect("in time");
    let join = quorate(
        &[&["node", "join", "-", "--socket"].map(OsStr::new)[..], &[second.1.as_os_str()]].concat(),
        &invitation,
    );
    let said = wait_until("the reason", PATIENCE, || Some(join.so_far()).filter(|said| said.contains("is an IPv4")));
    let said = said.unwrap_or_else(|late| panic!("{late}: {}", join.so_far()));
    assert!(said.contains("this node listens on IPv6 only") && said.contains("listen on [::]:"), "{said}");
}

/// A daemon stands still. Mutated: without a deadline the command waits for ever.
#[test]
fn a_command_does_not_wait_for_ever_for_a_daemon_that_stands_still() {
    let cluster = TestCluster::found();
    let process = cluster.testnet.process("n1").expect("a node").expect("it runs");
    process.pause().expect("stops");
    let socket = cluster.testnet.directory().socket("n1").display().to_string();
    let command = cluster.testnet.quorate(["node", "status", "--socket", &socket]);
    let ended = Tool::start(command, b"").expect("runs").outcome(PATIENCE).expect("it ends");
    process.resume().expect("goes on");
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("the daemon did not answer within 10 s"), "{}", ended.stderr);
}

/// A limit on the size of files ends no command: what cannot be written is an error. Mutated: the signal of the kernel ends it.
#[test]
fn a_limit_on_the_size_of_files_ends_no_command() {
    let cluster = TestCluster::found();
    cluster.create("key");
    let sealed = cluster.testnet.run(["encrypt", "key"], &[7; 32 << 10]).expect("encrypts");
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("opened").display().to_string();
    let typed = cluster.testnet.quorate(["decrypt", "-o", &place]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 1; exec \"$0\" \"$@\""]).arg(typed.get_program()).args(typed.get_args());
    limited.envs(typed.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ended = Tool::start(limited, &sealed).expect("runs").outcome(PATIENCE).expect("ends");
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("File too large"), "{}", ended.stderr);
    assert_eq!(fs::read_dir(directory.path()).expect("ours").count(), 0, "nothing is left of it");
}

/// Something else has the path of the socket by the time at which the daemon stops. Mutated: it removes what lies there.
#[test]
fn a_daemon_that_stops_removes_its_own_socket_and_nothing_else() {
    let daemon = Daemon::start();
    let socket = daemon.directory.path().join("socket");
    fs::remove_file(&socket).expect("ours");
    fs::write(&socket, "of another program").expect("ours");
    daemon.sends(15);
    let (_directory, mut process) = (daemon.directory, daemon.process);
    wait_until("its end", PATIENCE, || process.ended()).expect("in time");
    assert_eq!(fs::read_to_string(&socket).expect("there"), "of another program");
    let daemon = Daemon::start();
    daemon.sends(15);
    let (directory, mut process) = (daemon.directory, daemon.process);
    wait_until("its end", PATIENCE, || process.ended()).expect("in time");
    assert!(!directory.path().join("socket").exists(), "the control: its own one");
}
