//! `quorate-testnet`: a cluster on this machine, to try things on.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use quorate_testnet::cluster::directory::Directory;
use quorate_testnet::cluster::{self, Cluster};
use quorate_testnet::procs::Binaries;
use quorate_testnet::{Error, bench, demo, load, thief};

/// A Quorate cluster on this machine: demo, faults, thief
#[derive(Parser)]
#[command(
    name = "quorate-testnet",
    version,
    disable_help_subcommand = true,
    after_help = "Examples:
  quorate-testnet story              the demo: founds a cluster, breaks it, robs it; a minute or two
  quorate-testnet up                 a cluster of three to try things on, left running
  quorate-testnet kill n2
  quorate-testnet cut n3             off the other nodes; clients still reach it
  quorate-testnet heal
  quorate-testnet load               clients that never stop; kill and start nodes meanwhile
  quorate-testnet steal n2 /tmp/n2 && quorate-testnet thief /tmp/n2
  quorate-testnet down"
)]
struct Cli {
    /// Where the cluster lives
    #[arg(long, global = true, default_value = ".testnet", value_name = "DIR")]
    dir: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Found a cluster and leave it running; on a directory that has one, start what is down
    Up {
        /// Number of nodes, if there is no cluster yet
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
        /// Number of nodes that may join later: start one, then `quorate node invite` and `quorate node join`
        #[arg(long, default_value_t = 0)]
        spares: u8,
    },
    /// Stop all processes in good order, and say which ran; the directory stays
    Down,
    /// Kill a node without warning
    Kill {
        /// Name of the node
        name: String,
    },
    /// Start a node again
    Start {
        /// Name of the node
        name: String,
    },
    /// Cut a node off from the others, or from one of them
    Cut {
        /// Name of the node
        name: String,
        /// Cut it off from this node alone
        from: Option<String>,
    },
    /// End every cut
    Heal,
    /// Copy a node's disk, as it is at this instant
    Steal {
        /// Name of the node
        name: String,
        /// Directory for the copy, which must not exist
        destination: PathBuf,
    },
    /// Open what stolen disks give away, with the real opening code
    Thief {
        /// Copies of data directories
        #[arg(required = true)]
        disks: Vec<PathBuf>,
    },
    /// Keep clients busy and count errors that they should not see; fails if there is any
    Load {
        /// How long, in seconds
        #[arg(long, default_value_t = 30, value_name = "S")]
        seconds: u64,
        /// Number of clients
        #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
        clients: u64,
    },
    /// The demo, in a directory of its own; fails if any step does
    Story {
        /// Keep its files in this directory, which must not hold a cluster
        #[arg(long, value_name = "DIR")]
        keep: Option<PathBuf>,
    },
    /// Measure what it costs, in one table; wants a release build, takes a few minutes
    Bench {
        /// What to measure; everything if nothing is named
        sections: Vec<bench::Section>,
    },
    /// The relay of a cluster that is up
    #[command(hide = true)]
    Relay,
}

fn main() -> ExitCode {
    let Cli { dir, verb } = Cli::parse();
    match act(&dir, verb, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads has seen enough, as in `make demo | head`. What this process started ends with it.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quorate-testnet: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn act(dir: &Path, verb: Verb, out: &mut dyn Write) -> Result<(), Error> {
    match verb {
        Verb::Up { nodes, spares } => up(dir, nodes, spares, out),
        Verb::Down => down(dir, out),
        Verb::Kill { name } => Cluster::attach(dir)?.kill(&name),
        Verb::Start { name } => Cluster::attach(dir)?.start(&name),
        Verb::Cut { name, from: None } => Cluster::attach(dir)?.cut(&name),
        Verb::Cut { name, from: Some(other) } => Cluster::attach(dir)?.cut_pair(&name, &other),
        Verb::Heal => Cluster::attach(dir)?.heal(),
        Verb::Steal { name, destination } => Cluster::attach(dir)?.steal_one(&name, &destination),
        Verb::Thief { disks } => say(out, &thief::rob(&disks).to_string()),
        Verb::Load { seconds, clients } => {
            let options = load::Options { clients, ..load::Options::default() };
            load::run(&Directory::at(dir)?, &options, seconds, out)
        }
        Verb::Story { keep } => demo::tell(keep, out),
        Verb::Bench { sections } => bench::run(&sections, out),
        Verb::Relay => cluster::run_relay(dir),
    }
}

fn up(dir: &Path, nodes: u8, spares: u8, out: &mut dyn Write) -> Result<(), Error> {
    let (cluster, serving) = match Directory::at(dir)?.manifest()? {
        None => {
            let cluster = Cluster::builder().directory(dir).nodes(nodes).spares(spares).detached().found()?;
            let serving = cluster.names();
            (cluster, serving)
        }
        Some(_) => {
            let mut cluster = Cluster::attach(dir)?;
            if !cluster.directory().client_file().exists() {
                cluster.terminate_all()?;
                let reason = "its founding did not finish; what ran of it is stopped now".to_owned();
                return Err(Error::Directory { path: dir.to_owned(), reason });
            }
            cluster.start_all()?;
            let (serving, revoked) = cluster.wait_all_serving_or_revoked()?;
            for name in revoked {
                say(out, &format!("{name} was revoked or removed, and stays out of service"))?;
            }
            (cluster, serving)
        }
    };
    say(out, &what_to_try(&cluster, &serving)?)
}

/// A block of commands that works as it is pasted, from any directory.
fn what_to_try(cluster: &Cluster, serving: &[String]) -> Result<String, Error> {
    let directory = cluster.directory();
    let first = serving.first().map_or("n1", String::as_str);
    let [path, client_file, token] = [directory.path(), &directory.client_file(), &directory.token()]
        .map(|path| quoted(&path.display().to_string()));
    Ok(format!(
        "{} serve. To try it, paste this in any directory:\n\n  \
         export PATH={}:$PATH\n  \
         export QUORATE_CLUSTER={client_file} QUORATE_TOKEN_FILE={token}\n  \
         quorate status\n  \
         quorate key create demo\n  \
         echo hello | quorate encrypt demo | tee hello.qrt\n  \
         quorate-testnet --dir {path} kill {first} && quorate decrypt hello.qrt\n\n\
         `quorate-testnet --dir {path} down` stops it; `up` in place of `down` starts what is down.",
        serving.join(", "),
        quoted(&programs()?),
    ))
}

/// The directories of the programs, as they stand in PATH.
fn programs() -> Result<String, Error> {
    let this =
        env::current_exe().map_err(|source| Error::Io { what: "find the running program".to_owned(), source })?;
    let mut directories: Vec<_> =
        [this, Binaries::find()?.quorate].iter().filter_map(|program| Some(program.parent()?.to_owned())).collect();
    directories.dedup();
    Ok(directories.iter().map(|directory| directory.display().to_string()).collect::<Vec<_>>().join(":"))
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-:+".contains(letter);
    match word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

fn down(dir: &Path, out: &mut dyn Write) -> Result<(), Error> {
    let mut cluster = Cluster::attach(dir)?;
    let running = cluster.running();
    cluster.terminate_all()?;
    let path = cluster.directory().path().display().to_string();
    let stopped = match running.as_slice() {
        [] => format!("nothing was running in {path}"),
        running => format!("stopped {}; their files stay in {path}", running.join(", ")),
    };
    say(out, &stopped)
}

fn say(out: &mut dyn Write, text: &str) -> Result<(), Error> {
    writeln!(out, "{text}").map_err(Error::Output)
}
