//! The command line of Quorate, as a library: [`run`] does all that the command `quorate` does.
//!
//! The result of a command goes to `out`, and nothing else does. Progress, warnings and errors go to `err`. An error
//! reads `quorate: what went wrong`, then `hint: what to do`, and the exit code gives its kind ([`exit`]). No argument
//! needs to hold a secret, because other users can read arguments. An invitation as an argument is accepted with a
//! warning. The only secret that is ever written is the result itself.

mod args;
mod commands;
mod failure;
mod reach;
mod terminal;

pub use commands::doctor;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;

use clap::error::ErrorKind;
use quorate_client::place;
use tokio::signal::unix::{SignalKind, signal};

use args::{AlarmCommand, ClusterCommand, Command, Common, KeyCommand, NodeCommand};
use commands::{alarms, crypt, founding, keys, manual, nodes, operations, status};
use failure::Failure;

/// What exit codes mean.
pub mod exit {
    pub const DONE: u8 = 0;
    /// Failed in a way that has no code of its own.
    pub const FAILED: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// No node serves: all are locked, without a quorum, or unreachable.
    pub const NO_QUORUM: u8 = 3;
    /// The token is missing or unknown, or does not permit the request.
    pub const DENIED: u8 = 4;
    /// There is no key or node with that name.
    pub const NOT_FOUND: u8 = 5;
    /// The state is not what the command expects.
    pub const CONFLICT: u8 = 6;
    /// Keys can be used, but an alarm is open (`status` only).
    pub const ALARM: u8 = 7;
    /// Interrupted while it waited. The work that was begun continues.
    pub const INTERRUPTED: u8 = 130;
}

/// The streams of one run, and the options that every command has.
struct Session<'a> {
    common: Common,
    input: &'a mut dyn Read,
    /// What standard input was read for.
    input_gave: Option<&'static str>,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    /// Where the token was found, for the hint if it is refused.
    token_from: Option<String>,
}

impl<'a> Session<'a> {
    fn new(common: Common, input: &'a mut dyn Read, out: &'a mut dyn Write, err: &'a mut dyn Write) -> Self {
        Self { common, input, input_gave: None, out, err, token_from: None }
    }

    /// Standard input, to read `what` from it. It can be read for one thing only.
    fn stdin(&mut self, what: &'static str) -> Result<&mut dyn Read, Failure> {
        match self.input_gave.replace(what) {
            None => Ok(&mut *self.input),
            Some(first) => {
                let message = format!("standard input cannot give both the {first} and the {what}");
                Err(Failure::new(exit::USAGE, message).hint(match what {
                    CONFIRMATION => "say --yes",
                    _ => "name a file for one of them",
                }))
            }
        }
    }

    /// Puts the result at the path that the user gave. Without a path, and for `-`, it goes to standard output.
    fn put(&mut self, path: Option<&Path>, bytes: &[u8], mode: u32) -> Result<(), Failure> {
        match path.filter(|path| !is_stream(path)) {
            None => self.result(bytes),
            Some(path) => place::put(path, bytes, mode)
                .map_err(|error| Failure::new(exit::FAILED, format!("{}: {error}", path.display()))),
        }
    }

    /// Writes a line for people. Control characters other than a line break are shown, not sent. If the line cannot be written, the
    /// command goes on.
    fn note(&mut self, line: &str) {
        let is_escaped = |letter: char| letter.is_control() && letter != '\n';
        let shown: String = line
            .chars()
            .map(|letter| if is_escaped(letter) { letter.escape_default().to_string() } else { letter.to_string() })
            .collect();
        let _ = writeln!(self.err, "{shown}");
    }

    /// Writes a part of the result.
    fn result(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).and_then(|()| self.out.flush()).map_err(Failure::output)
    }
}

/// The signal for a write beyond the limit on the size of files. This is its number on x86-64 and on AArch64.
const SIGXFSZ: i32 = 25;

/// What a person types to confirm a command, as [`Session::stdin`] calls it.
const CONFIRMATION: &str = "confirmation";

/// Whether a path stands for standard input or output.
fn is_stream(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Runs one command line, the program's name included, and returns its exit code.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    input: &mut dyn Read,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let cli = match args::parse(&help_as_option(arguments.into_iter().collect())) {
        Ok(cli) => cli,
        Err(error) => return show_usage(&error, out, err),
    };
    let mut session = Session::new(cli.common, input, out, err);
    match execute(&mut session, cli.command) {
        Ok(code) => code,
        Err(failure) => {
            session.note(&format!("quorate: {}", failure.message));
            if let Some(hint) = failure.hint {
                let hint = hint.text(session.token_from.as_deref());
                session.note(&format!("hint: {hint}"));
            }
            failure.exit
        }
    }
}

/// Rewrites `quorate help key create`, which other programs accept, to `quorate key create --help`.
fn help_as_option(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if arguments.get(1).is_some_and(|first| first == "help") {
        arguments.remove(1);
        arguments.push("--help".into());
    }
    arguments
}

fn show_usage(error: &clap::Error, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // It is no failure if the help cannot be written.
            let _ = out.write_all(text.as_bytes());
            exit::DONE
        }
        _ => {
            // In the form of all other errors.
            let text = text.strip_prefix("error:").map_or_else(|| text.clone(), |rest| format!("quorate:{rest}"));
            let text = text.replace("\n\n  tip: ", "\nhint: ");
            let text = text.replace("\nFor more information, try '--help'.", "\nhint: --help shows an example");
            let _ = err.write_all(text.as_bytes());
            exit::USAGE
        }
    }
}

fn execute(session: &mut Session<'_>, command: Command) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(exit::FAILED, format!("no runtime: {error}")))?;
    let ended = runtime.block_on(async {
        // A limit on the size of files is an error of the write, and not the end of this process.
        let _ignored = signal(SignalKind::from_raw(SIGXFSZ));
        match command {
            Command::Cluster(ClusterCommand::Init(options)) => founding::init(session, options).await,
            Command::Cluster(ClusterCommand::Export(options)) => nodes::export(session, options).await,
            Command::Node(NodeCommand::Join(options)) => founding::join(session, options).await,
            Command::Node(NodeCommand::List) => nodes::list(session).await,
            Command::Node(NodeCommand::Status { name }) => nodes::status(session, name).await,
            Command::Node(NodeCommand::Invite(options)) => operations::invite(session, options).await,
            Command::Node(NodeCommand::Replace(options)) => operations::replace(session, options).await,
            Command::Node(NodeCommand::SetAddress { name, addresses }) => {
                nodes::set_address(session, name, addresses).await
            }
            Command::Node(NodeCommand::Remove(options)) => operations::remove(session, options).await,
            Command::Node(NodeCommand::Revoke(options)) => operations::revoke(session, options).await,
            Command::Node(NodeCommand::Seal { name }) => nodes::seal(session, name, true).await,
            Command::Node(NodeCommand::Unseal { name }) => nodes::seal(session, name, false).await,
            Command::Node(NodeCommand::Admit { name, local }) => nodes::admit(session, name, local).await,
            Command::Alarm(AlarmCommand::List) => alarms::list(session).await,
            Command::Alarm(AlarmCommand::Disarm(options)) => alarms::disarm(session, options).await,
            Command::Status => status::status(session).await,
            Command::Key(KeyCommand::Create(options)) => keys::create(session, options).await,
            Command::Key(KeyCommand::List) => keys::list(session).await,
            Command::Key(KeyCommand::Show { name }) => keys::show(session, name).await,
            Command::Key(KeyCommand::Rotate(options)) => keys::rotate(session, options).await,
            Command::Encrypt(options) => crypt::encrypt(session, options).await,
            Command::Decrypt(options) => crypt::decrypt(session, options).await,
            Command::Datakey(options) => crypt::data_key(session, options).await,
            Command::Doctor(options) => doctor::doctor(session, options).await,
            Command::Completions { shell } => manual::completions(session, shell),
            Command::Man { directory } => manual::pages(session, &directory),
        }
    });
    // The command has its answer, and waits for nothing that is left.
    runtime.shutdown_background();
    ended
}
