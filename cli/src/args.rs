//! The definition of the command line: commands, arguments and their help.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use quorate_client::wire::SOCKET;
use quorate_client::{KeyName, KeyVersion, NodeName};

/// A threshold-sharded key service that boots alone.
#[derive(Debug, Parser)]
#[command(
    name = "quorate",
    version,
    disable_help_subcommand = true,
    after_help = "Examples:
  quorate key create billing/cards
  echo -n 'attack at dawn' | quorate encrypt billing/cards > message.qrt
  quorate decrypt message.qrt

Exit codes: 0 done, 1 failed, 2 usage, 3 locked or no quorum, 4 denied, 5 not found, 6 conflict, 7 open alarm (status), 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Client file: the cluster and its nodes; `-` is standard input [default: ~/.config/quorate/cluster.toml]
    #[arg(long, global = true, value_name = "FILE", env = "QUORATE_CLUSTER", hide_env_values = true)]
    pub(crate) cluster: Option<OsString>,
    /// File with the token; `-` is standard input; QUORATE_TOKEN may hold the token itself [default:
    /// ~/.config/quorate/token]
    #[arg(long, global = true, value_name = "FILE", env = "QUORATE_TOKEN_FILE", hide_env_values = true)]
    pub(crate) token_file: Option<OsString>,
    /// Ask only this node
    #[arg(long, global = true, value_name = "NAME|HOST:PORT")]
    pub(crate) node: Option<String>,
    /// Local socket of this machine's daemon, for init, join and commands about this node
    #[arg(long, global = true, value_name = "FILE", env = "QUORATE_SOCKET", default_value = SOCKET, hide_env_values = true)]
    pub(crate) socket: PathBuf,
    /// Form of the result
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub(crate) output: Format,
    /// Say which nodes failed
    #[arg(long, short, global = true)]
    pub(crate) verbose: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For programs, stable
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Found a cluster, print its client file
    #[command(
        subcommand,
        after_help = "Examples:
  quorate cluster init --founders 3
  quorate cluster export -o cluster.toml"
    )]
    Cluster(ClusterCommand),
    /// Invite, join, remove, revoke, list, show, seal and admit nodes
    #[command(
        subcommand,
        after_help = "Examples:
  quorate node invite
  quorate node join -
  quorate node list
  quorate node remove n4
  quorate node revoke n2
  quorate node seal n2"
    )]
    Node(NodeCommand),
    /// Show the state of the cluster: exit 0 healthy, 3 locked or no quorum, 7 open alarm
    #[command(after_help = "Example:\n  quorate status --output json | jq .quorum")]
    Status,
    /// List and disarm alarms
    #[command(
        subcommand,
        after_help = "Examples:
  quorate alarm list
  quorate alarm disarm stale_image"
    )]
    Alarm(AlarmCommand),
    /// Make, list and rotate keys
    #[command(
        subcommand,
        after_help = "Examples:
  quorate key create billing/cards
  quorate key list
  quorate key rotate billing/cards"
    )]
    Key(KeyCommand),
    /// Encrypt up to 64 KiB into one line of text
    #[command(after_help = "Examples:
  echo -n secret | quorate encrypt billing/cards -c customer=4711 > message.qrt
  quorate encrypt disks/db1 disk.key -o disk.key.qrt")]
    Encrypt(Encrypt),
    /// Decrypt what `encrypt` or `datakey` made
    #[command(after_help = "Examples:
  quorate decrypt -c customer=4711 message.qrt
  quorate decrypt disk.key.qrt | cryptsetup open --key-file - /dev/sdb1 data")]
    Decrypt(Decrypt),
    /// Make a data key, in plain and encrypted under KEY, for data too large to send
    #[command(after_help = "Example:\n  quorate datakey billing/cards --output json")]
    Datakey(Datakey),
    /// Find what weakens the promises of Quorate on this machine: exit 1 if anything does
    #[command(after_help = "Examples:
  quorate doctor
  quorate doctor --output json | jq '.[]|select(.ok|not)'

Checks the memory for secrets, swap, core dumps, file modes, the place of the token, the clock and the file system.")]
    Doctor(Doctor),
    /// Print the completions of a shell
    #[command(after_help = "Examples:
  quorate completions bash > /usr/share/bash-completion/completions/quorate
  quorate completions fish > ~/.config/fish/completions/quorate.fish")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write a manual page for every command
    #[command(after_help = "Example:\n  quorate man /usr/local/share/man/man1")]
    Man {
        /// A directory, made if it does not exist; pages of the same names are replaced
        directory: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// On the first node: found a cluster and print the invitations for the others
    #[command(after_help = "Example:
  quorate cluster init --founders 3

Waits until the cluster is founded. Ctrl-C stops only the waiting; the same command waits again, and prints new \
invitations for the founders that have not joined. The key of the first operator is written to --token-file and never shown.")]
    Init(Init),
    /// Print the client file, which tells clients where the cluster is
    #[command(after_help = "Example:\n  quorate cluster export -o cluster.toml")]
    Export(Export),
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Number of founders, including this node: usually 3, 4 or 5
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) founders: u8,
    /// Nodes that must be up to use a key, and disks that a thief needs [default: the majority]
    #[arg(long, value_name = "T")]
    pub(crate) threshold: Option<u8>,
    /// Accept a single node: one stolen disk opens everything
    #[arg(long)]
    pub(crate) allow_solo: bool,
    /// Accept two nodes: one lost disk loses every key
    #[arg(long)]
    pub(crate) accept_no_redundancy: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Write to this file; `-` is standard output [default: standard output]
    #[arg(long, short = 'o', value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Ask this machine's daemon through its socket, without client file and token
    #[arg(long)]
    pub(crate) local: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// On a new node: join the cluster of an invitation
    #[command(after_help = "Examples:
  quorate node join -
  ssh n1 quorate node invite | quorate node join -

Waits until the node serves. Ctrl-C stops only the waiting. Other users can see arguments: paste the invitation into \
standard input, or name a file with it.")]
    Join(Join),
    /// List all nodes
    #[command(after_help = "Example:\n  quorate node list")]
    List,
    /// Show one node; without NAME this machine's, through its socket
    #[command(after_help = "Examples:\n  quorate node status n2\n  quorate node status")]
    Status {
        /// The name of the node
        name: Option<NodeName>,
    },
    /// Print an invitation for one node, to be used once
    #[command(after_help = "Examples:
  quorate node invite
  quorate node invite --name n4 --ttl 10m | ssh n4 quorate node join -

The line that it prints is a secret until it is used.")]
    Invite(Invite),
    /// Let the node that joins with an invitation replace a lost node
    #[command(after_help = "Examples:
  quorate node invite > invitation
  quorate node replace n2 --with - --yes < invitation
  ssh n4 quorate node join - < invitation

The new node joins and the old one is revoked in one operation, so the number of nodes never changes.")]
    Replace(Replace),
    /// Record where a node listens, if that has changed
    #[command(after_help = "Examples:
  quorate node set-address n2 10.1.0.2:7250
  quorate node set-address n2 n2.example:7250 [fd00::2]:7250

The other nodes and the client file have these addresses from now on, in place of the earlier ones. \
What answers there must prove the key of the node.")]
    SetAddress {
        /// The name of the node
        name: NodeName,
        /// Where it listens, the best address first
        #[arg(required = true, value_name = "HOST:PORT")]
        addresses: Vec<String>,
    },
    /// Remove a node in an orderly way: all keys are first reshared among the others
    #[command(after_help = "Example:
  quorate node remove n4

Waits until it is done. Ctrl-C stops only the waiting; `quorate status` shows the progress. The node must be up, or the \
others must be able to unlock without it. If its disk is lost or stolen, use `quorate node revoke`.")]
    Remove(Remove),
    /// In an emergency: refuse nodes from now on, and make their disks useless
    #[command(after_help = "Examples:
  quorate node revoke n2
  quorate node revoke n2 n5 --yes --wait

Prints a line when each becomes true:
  decisive        the others refuse it: it gets no more keys, and no node can let it in again
  old disk: dead  its disk opens no key, even together with other disks below the threshold
  names safe      its disk opens nothing else either: no key name, no setting

Returns when it is decisive and no earlier lease can still run. The rest continues without the command.")]
    Revoke(Revoke),
    /// Make a node forget its keys until it is unsealed; without NAME this machine's
    #[command(after_help = "Examples:
  quorate node seal n2
  quorate node seal

It still votes and helps others to unlock, but it answers no client. A restart does not unseal it.")]
    Seal {
        /// The name of the node
        name: Option<NodeName>,
    },
    /// Let a node that was away for too long unlock itself again
    #[command(after_help = "Examples:
  quorate node admit n3
  quorate node admit n3 --local

If a node was away for longer than `timing.absence_window_ms` (2 h), its peers treat it as a stolen disk. Make sure \
that it is not one. With --local only the member on this machine is told, which is enough if there is no quorum to ask.")]
    Admit {
        /// The name of the node
        name: NodeName,
        /// Tell only this machine's node, through its socket, without client file and token
        #[arg(long)]
        local: bool,
    },
    /// Let a sealed node serve again; without NAME this machine's
    #[command(after_help = "Examples:\n  quorate node unseal n2\n  quorate node unseal")]
    Unseal {
        /// The name of the node
        name: Option<NodeName>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Data directory of the daemon [default: as the daemon says, else /var/lib/quorate]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AlarmCommand {
    /// List the open alarms of all nodes
    #[command(after_help = "Example:\n  quorate alarm list --output json")]
    List,
    /// Close alarms at all nodes, once you know what they mean
    #[command(after_help = "Examples:
  quorate alarm disarm stale_image duplicate_session
  quorate alarm disarm --all

If the cause persists, the alarm is raised again.")]
    Disarm(Disarm),
}

#[derive(Debug, Args)]
pub(crate) struct Disarm {
    /// The codes of the alarms, as `alarm list` shows them
    #[arg(value_name = "CODE", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) codes: Vec<String>,
    /// Close all alarms
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Invite {
    /// Only for a node with this name
    #[arg(long)]
    pub(crate) name: Option<NodeName>,
    /// How long it is valid, as in 10m, 1h or 2d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub(crate) ttl: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Replace {
    /// The node to replace
    pub(crate) name: NodeName,
    /// A file with the line that `node invite` printed; `-` is standard input
    #[arg(long = "with", value_name = "FILE")]
    pub(crate) invitation: OsString,
    /// Do not ask to type the name
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The node to remove
    pub(crate) name: NodeName,
    /// Accept that two nodes remain: the loss of one disk then loses every key
    #[arg(long)]
    pub(crate) accept_no_redundancy: bool,
    /// Count this absent node as lost: it may not be able to unlock itself without NAME; may be repeated
    #[arg(long, value_name = "NODE")]
    pub(crate) abandon: Vec<NodeName>,
    /// Do not ask to type the name
    #[arg(long)]
    pub(crate) yes: bool,
    /// Return as soon as it has begun
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// The nodes to revoke, all at once
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<NodeName>,
    /// Do not ask to type the names
    #[arg(long)]
    pub(crate) yes: bool,
    /// Return when everything is done, not as soon as it is decisive
    #[arg(long)]
    pub(crate) wait: bool,
    /// A node that is away, and whose disk is not lost: the revocation may wait for it
    #[arg(long, value_name = "NAME")]
    pub(crate) expect_back: Vec<NodeName>,
    /// Then make a new version of every key, in case worn-out flash still holds old copies
    #[arg(long)]
    pub(crate) rotate_keys: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// A file with the line that `cluster init` or `node invite` printed; `-` is standard input
    #[arg(value_name = "FILE")]
    pub(crate) invitation: OsString,
    /// Return as soon as the node has begun
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key
    #[command(after_help = "Example:\n  quorate key create billing/cards --tag owner=billing")]
    Create(Create),
    /// List all keys
    #[command(after_help = "Example:\n  quorate key list --output json | jq -r '.[].name'")]
    List,
    /// Show one key and its versions
    #[command(after_help = "Example:\n  quorate key show billing/cards")]
    Show {
        /// The name of the key
        name: KeyName,
    },
    /// Make a new version; older ciphertexts stay readable
    #[command(after_help = "Example:\n  quorate key rotate billing/cards")]
    Rotate(Rotate),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The name, which never changes: a-z 0-9 . _ - /
    pub(crate) name: KeyName,
    /// A note for people; may be repeated
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) tags: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct Rotate {
    /// The key's name
    pub(crate) name: KeyName,
    /// Refuse unless this is the newest version
    #[arg(long, value_name = "VERSION", value_parser = version)]
    pub(crate) expect: Option<KeyVersion>,
}

/// What a ciphertext is bound to.
#[derive(Debug, Args)]
pub(crate) struct Bound {
    /// Context: to decrypt, give the same; may be repeated
    #[arg(short = 'c', long = "context", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) context: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct Encrypt {
    /// The key's name
    pub(crate) key: KeyName,
    #[command(flatten)]
    pub(crate) bound: Bound,
    /// What to encrypt; `-` is standard input [default: standard input]
    pub(crate) file: Option<PathBuf>,
    /// Write to this file; `-` is standard output; a new one is readable by its owner only [default: standard output]
    #[arg(long, short = 'o', value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Decrypt {
    #[command(flatten)]
    pub(crate) bound: Bound,
    /// What to decrypt; `-` is standard input [default: standard input]
    pub(crate) file: Option<PathBuf>,
    /// Write to this file; `-` is standard output; a new one is readable by its owner only [default: standard output]
    #[arg(long, short = 'o', value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Datakey {
    /// The key's name
    pub(crate) key: KeyName,
    #[command(flatten)]
    pub(crate) bound: Bound,
    /// The length of the key in bytes
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) bytes: u16,
    /// Print only the encrypted form, to decrypt it where it is used
    #[arg(long)]
    pub(crate) wrapped_only: bool,
}

/// Reads a command line. An empty variable of the environment is as if it were not set.
///
/// A refusal shows the usage. To clap an option is in use if its variable is set, and it then shows the option as one that
/// must be given. So a refused command line is read once more without the environment, and the help with all of it.
pub(crate) fn parse(arguments: &[OsString]) -> Result<Cli, clap::Error> {
    let read = |takes: fn(&OsStr) -> bool| {
        let given = |variable: &OsStr| std::env::var_os(variable).is_none_or(|value| takes(&value));
        let command = Cli::command().mut_args(|arg| match arg.get_env().is_none_or(given) {
            true => arg,
            false => arg.env(None::<&'static str>),
        });
        Cli::from_arg_matches(&command.try_get_matches_from(arguments)?)
    };
    read(|value| !value.is_empty()).or_else(|refused| match refused.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => read(|_| true),
        // If the environment itself is at fault, there is no other refusal.
        _ => Err(read(|_| false).err().unwrap_or(refused)),
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err("expected a number and s, m, h or d".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "expected a number and s, m, h or d".to_owned())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| "too long".to_owned())
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

fn version(text: &str) -> Result<KeyVersion, String> {
    text.parse()
        .ok()
        .filter(|version| *version > 0)
        .map(KeyVersion)
        .ok_or_else(|| "expected a number from 1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands behind the options in the help of every command is wrapped by clap, to the width of the terminal.
    /// Mutated: a line break inside of a paragraph leaves a short line in the middle of it.
    #[test]
    fn no_paragraph_of_the_help_breaks_in_the_middle() {
        fn check(typed: &str, command: &clap::Command) {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let is_prose = |line: &str| line.contains(' ') && !line.starts_with(' ') && !line.ends_with(':');
            let lines: Vec<_> = text.lines().collect();
            let broken = lines.windows(2).find(|pair| is_prose(pair[0]) && is_prose(pair[1]));
            assert_eq!(broken, None, "{typed}");
            for inner in command.get_subcommands() {
                check(&format!("{typed} {}", inner.get_name()), inner);
            }
        }
        check("quorate", &Cli::command());
    }
}
