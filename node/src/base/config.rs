//! Configuration: flags, over `QUORATE_*` environment variables, over a TOML file.
//!
//! The three are merged and then checked as a whole. So a daemon either starts with a valid configuration, or names the
//! setting that is not valid. Timings have floors: tests may shorten them, but not below what the protocol needs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{CommandFactory, FromArgMatches};
use ipnet::IpNet;
use quorate_client::wire::SOCKET;
use quorate_raft::state::{LEASE_MS_MAX, LEASE_MS_MIN};
use quorate_shares::ids::{ADDRESSES_MAX, IdError, NodeName, is_address};
use quorate_shares::lock::PIN_BYTES_MAX;
use serde::Deserialize;

use crate::base::paths;

/// Flags and environment of `quorated`. Each one overrides the setting of the same name in the file.
#[derive(Debug, Default, clap::Parser)]
#[command(
    name = "quorated",
    version,
    about = "The Quorate daemon: a node of a threshold-sharded key service",
    after_help = "Example:\n  quorated --data /var/lib/quorate --listen 10.0.0.1:7250 --name n1\n\n\
                  Without a vault file in the data directory it waits, uninitialised, on its local socket for\n\
                  `quorate cluster init` or `quorate node join`. With one it unlocks itself from its peers."
)]
pub struct Flags {
    /// Data directory, made with mode 0700 if it does not exist
    #[arg(long, env = "QUORATE_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// UDP address to serve on
    #[arg(long, env = "QUORATE_LISTEN", value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// Address that peers and clients use to reach this node (default: the listen address)
    #[arg(long, env = "QUORATE_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// The operator's name for this node (default: the host name)
    #[arg(long, env = "QUORATE_NAME")]
    pub name: Option<String>,
    /// Local admin socket (default: /run/quorate/quorated.sock)
    #[arg(long, env = "QUORATE_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// TOML file with the same settings; `-` is standard input
    #[arg(long, env = "QUORATE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This node is a member: wait for its vault if the data directory has none, and never start without one
    #[arg(
        long,
        env = "QUORATE_EXPECT_MEMBER",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new(),
        hide_possible_values = true
    )]
    pub expect_member: Option<bool>,
    /// Replace a damaged state by another node's, keeping log and vote; for one start
    #[arg(long)]
    pub rebuild_state: bool,
}

/// The TOML file. Every setting is optional, and an unknown setting is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data: Option<PathBuf>,
    listen: Option<SocketAddr>,
    advertise: Option<String>,
    name: Option<String>,
    socket: Option<PathBuf>,
    secret_memory: Option<SecretMemory>,
    pin_file: Option<PathBuf>,
    pin_credential: Option<String>,
    unlock_from: Option<Vec<IpNet>>,
    expect_member: Option<bool>,
    #[serde(default)]
    peers: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    timing: Timing,
}

/// Where secrets are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum SecretMemory {
    /// Pages that the kernel itself does not map (memfd_secret), if the kernel has them; otherwise as `mlock`.
    #[default]
    Auto,
    /// Locked pages that are left out of core dumps.
    Mlock,
}

/// Where the pin should lie. The pin is the local half of the key that opens the node's own lock.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PinAt {
    /// In the vault, beside the lock. It protects the lock from the peers only.
    #[default]
    Vault,
    /// In a file at this absolute path, normally on another device.
    File(String),
    /// In a systemd credential of this name.
    Credential(String),
}

/// How long a lease is in a cluster whose first founder chose nothing else.
const LEASE_MS: u64 = 3_000;

/// Times and limits. The defaults suit one site. The floors are what the protocol needs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// How long a node may serve after the leader last confirmed it. The first founder's choice becomes the cluster's, and no
    /// node can have another.
    pub lease_ms: Option<u64>,
    /// How often a node asks the leader to confirm it.
    pub lease_tick_ms: u64,
    /// How long after the loss of the lease the keys are wiped from memory.
    pub wipe_after_ms: u64,
    /// How often the leader sends a heartbeat.
    pub heartbeat_ms: u64,
    /// How long a leader may be silent. A follower starts an election after 1.5 to 2 times this.
    pub election_ms: u64,
    /// How long an unused key stays in memory.
    pub key_idle_ms: u64,
    /// How long a key stays in memory at most, also if it is used.
    pub key_age_ms: u64,
    /// When a node renews its lock for the first time after it began to serve: after one to four times this.
    pub renew_lock_after_ms: u64,
    /// How often a node renews its lock after that.
    pub renew_lock_every_ms: u64,
    /// How long a peer may be away and still be unlocked without an operator. Counted only while this node serves.
    pub absence_window_ms: u64,
    /// Pause before an epoch that has one purpose only: members that were away can erase old share keys. Counted from the
    /// epoch before.
    pub rekey_pause_ms: u64,
    /// A joiner that is silent for this long is given up.
    pub joiner_patience_ms: u64,
    /// A member that answers, and for this long does not do its part of an operation, counts as away.
    pub member_patience_ms: u64,
    /// How long the rest of a message from a stranger or a client may take, and how long they may leave answers unread.
    pub stranger_patience_ms: u64,
    /// How often a member dials the other members at the addresses that the cluster records.
    pub dial_every_ms: u64,
    /// After this many log entries a snapshot replaces them.
    pub snapshot_every: u64,
    /// This many entries stay beside the snapshot. A node that misses more entries gets the snapshot.
    pub entries_kept: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease_ms: None,
            lease_tick_ms: 1_000,
            wipe_after_ms: 10_000,
            heartbeat_ms: 100,
            election_ms: 300,
            key_idle_ms: 15 * 60_000,
            key_age_ms: 24 * 3_600_000,
            renew_lock_after_ms: 10_000,
            renew_lock_every_ms: 24 * 3_600_000,
            absence_window_ms: 2 * 3_600_000,
            rekey_pause_ms: 10 * 60_000,
            joiner_patience_ms: 10 * 60_000,
            member_patience_ms: 60_000,
            stranger_patience_ms: 30_000,
            dial_every_ms: 30_000,
            snapshot_every: 10_000,
            entries_kept: 2_000,
        }
    }
}

impl Timing {
    /// How long the leases of a cluster are that this node founds.
    pub fn lease_ms(&self) -> u64 {
        self.lease_ms.unwrap_or(LEASE_MS)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let floor = |setting: &'static str, value: u64, floor: u64| {
            if value < floor { Err(ConfigError::Floor { setting, value, floor }) } else { Ok(()) }
        };
        floor("timing.heartbeat_ms", self.heartbeat_ms, 20)?;
        floor("timing.election_ms", self.election_ms, self.heartbeat_ms.saturating_mul(3))?;
        floor("timing.lease_tick_ms", self.lease_tick_ms, 50)?;
        floor("timing.lease_ms", self.lease_ms(), LEASE_MS_MIN.max(self.lease_tick_ms.saturating_mul(2)))?;
        if self.lease_ms() > LEASE_MS_MAX {
            let (setting, value, ceiling) = ("timing.lease_ms", self.lease_ms(), LEASE_MS_MAX);
            return Err(ConfigError::Ceiling { setting, value, ceiling });
        }
        floor("timing.wipe_after_ms", self.wipe_after_ms, 1)?;
        floor("timing.key_idle_ms", self.key_idle_ms, 1)?;
        floor("timing.key_age_ms", self.key_age_ms, self.key_idle_ms)?;
        floor("timing.renew_lock_after_ms", self.renew_lock_after_ms, 1)?;
        floor("timing.renew_lock_every_ms", self.renew_lock_every_ms, self.renew_lock_after_ms)?;
        floor("timing.absence_window_ms", self.absence_window_ms, 1_000)?;
        floor("timing.rekey_pause_ms", self.rekey_pause_ms, 100)?;
        floor("timing.joiner_patience_ms", self.joiner_patience_ms, 1_000)?;
        floor("timing.member_patience_ms", self.member_patience_ms, 1_000)?;
        floor("timing.stranger_patience_ms", self.stranger_patience_ms, 1_000)?;
        floor("timing.dial_every_ms", self.dial_every_ms, 100)?;
        floor("timing.snapshot_every", self.snapshot_every, 10)
    }
}

/// A configuration that was checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub data: PathBuf,
    pub listen: SocketAddr,
    /// `host:port` at which others reach this node.
    pub advertise: String,
    pub name: NodeName,
    pub socket: PathBuf,
    pub secret_memory: SecretMemory,
    pub pin: PinAt,
    /// Networks from which peers may ask to be unlocked; `None` means every address.
    pub unlock_from: Option<Vec<IpNet>>,
    /// Where members may be besides the addresses that the cluster records.
    pub peers: BTreeMap<NodeName, Vec<String>>,
    pub timing: Timing,
    /// If the data directory has no vault, wait until it has one; accept no `init` and no `join`.
    pub expect_member: bool,
    /// At this start, replace a damaged state by another node's.
    pub rebuild_state: bool,
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    /// The file is not valid. `reason` names line and column.
    #[error("{path} is not a valid configuration:\n{reason}")]
    Parse { path: PathBuf, reason: String },
    /// A setting without a default is missing.
    #[error("{0} is not set: give the flag, the environment variable, or the line in the configuration file")]
    Missing(&'static str),
    /// A setting is not valid.
    #[error("{setting} is not valid: {reason}")]
    Invalid { setting: &'static str, reason: String },
    /// A timing is below what the protocol needs.
    #[error("{setting} = {value} is below its floor of {floor}")]
    Floor { setting: &'static str, value: u64, floor: u64 },
    /// A timing is above what the protocol allows.
    #[error("{setting} = {value} is above its ceiling of {ceiling}")]
    Ceiling { setting: &'static str, value: u64, ceiling: u64 },
}

impl Flags {
    /// Reads the command line and the environment. An empty variable is as if it were not set.
    pub fn read() -> Self {
        let is_empty = |variable: &OsStr| std::env::var_os(variable).is_some_and(|value| value.is_empty());
        let command = Self::command().mut_args(|arg| match arg.get_env().is_some_and(is_empty) {
            true => arg.env(None::<&'static str>),
            false => arg,
        });
        Self::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
    }
}

impl Config {
    /// Merges flags, environment (already in `flags`) and the file, and checks the result.
    ///
    /// # Errors
    /// Names the first setting that is missing or not valid.
    pub fn load(flags: Flags) -> Result<Self, ConfigError> {
        let file = flags.config.as_deref().map(read).transpose()?.unwrap_or_default();
        file.timing.check()?;
        let data = check_path("--data", flags.data.or(file.data).ok_or(ConfigError::Missing("--data"))?)?;
        let listen = flags.listen.or(file.listen).ok_or(ConfigError::Missing("--listen"))?;
        let advertise = match flags.advertise.or(file.advertise) {
            Some(advertise) => check_address("--advertise", advertise)?,
            None if listen.ip().to_canonical().is_unspecified() || listen.port() == 0 => {
                return Err(ConfigError::Invalid {
                    setting: "--advertise",
                    reason: format!(
                        "{listen} cannot be reached from another machine; name the address that peers and clients should use"
                    ),
                });
            }
            None => check_address("--listen", listen.to_string())?,
        };
        let name = flags.name.or(file.name).unwrap_or_else(host_name);
        let name = name.parse().map_err(|error: IdError| ConfigError::Invalid {
            setting: "--name",
            reason: format!("{name:?}: {error}"),
        })?;
        let socket = check_path("--socket", flags.socket.or(file.socket).unwrap_or_else(|| SOCKET.into()))?;
        let pin = pin_at(file.pin_file, file.pin_credential, &data)?;
        let peers = file.peers.into_iter().map(|(name, addresses)| peer(&name, addresses)).collect::<Result<_, _>>()?;
        if file.unlock_from.as_ref().is_some_and(Vec::is_empty) {
            let reason = "no peer could ever be unlocked; leave the setting out to allow every address".to_owned();
            return Err(ConfigError::Invalid { setting: "unlock_from", reason });
        }
        Ok(Self {
            data,
            listen,
            advertise,
            name,
            socket,
            secret_memory: file.secret_memory.unwrap_or_default(),
            pin,
            unlock_from: file.unlock_from.map(|networks| networks.into_iter().map(canonical).collect()),
            peers,
            timing: file.timing,
            expect_member: flags.expect_member.or(file.expect_member).unwrap_or(false),
            rebuild_state: flags.rebuild_state,
        })
    }
}

impl Config {
    /// Whether a peer at this address may ask to be unlocked.
    pub fn may_unlock_from(&self, address: IpAddr) -> bool {
        // A socket for both families shows the IPv4 address 10.0.0.7 as ::ffff:10.0.0.7.
        let address = address.to_canonical();
        self.unlock_from.as_ref().is_none_or(|networks| networks.iter().any(|network| network.contains(&address)))
    }
}

/// A network of IPv4 addresses that is written as one of IPv6 (`::ffff:10.0.0.0/104`), as one of IPv4.
fn canonical(network: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    match (network.addr().to_canonical(), network.prefix_len().checked_sub(MAPPED_BITS)) {
        (IpAddr::V4(address), Some(bits)) if matches!(network, IpNet::V6(_)) => {
            IpNet::new(address.into(), bits).unwrap_or(network)
        }
        _ => network,
    }
}

/// A path as it was given. A variable from a file with other line ends brings a control character along.
fn check_path(setting: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    match path.to_string_lossy().contains(char::is_control) {
        true => {
            let reason = format!("{path:?} has a control character: does a file with the line ends of Windows set it?");
            Err(ConfigError::Invalid { setting, reason })
        }
        false => Ok(path),
    }
}

/// Where the pin should lie, by the two settings. At most one of them may be set.
fn pin_at(file: Option<PathBuf>, credential: Option<String>, data: &Path) -> Result<PinAt, ConfigError> {
    let invalid = |setting, reason: &str| Err(ConfigError::Invalid { setting, reason: reason.to_owned() });
    let file = file.map(|path| check_path("pin_file", path)).transpose()?;
    match (file, credential) {
        (None, None) => Ok(PinAt::Vault),
        (Some(_), Some(_)) => invalid("pin_file", "pin_credential is set, too; set only one of them"),
        (Some(path), None) if !path.is_absolute() => invalid("pin_file", "the path is not absolute"),
        (Some(path), None) if paths::lies_in(&path, data) => {
            invalid("pin_file", "it lies in the data directory, and would be taken together with it")
        }
        (Some(path), None) => match path.to_str().filter(|path| path.len() <= PIN_BYTES_MAX) {
            Some(path) => Ok(PinAt::File(path.to_owned())),
            None => invalid("pin_file", "the path is not UTF-8, or longer than 1024 bytes"),
        },
        (None, Some(name)) => match !name.is_empty() && name.len() <= 255 && !name.contains('/') {
            true => Ok(PinAt::Credential(name)),
            false => invalid("pin_credential", "it is not the name of a systemd credential"),
        },
    }
}

/// Longest configuration file. Others are a few lines; a device has no end.
const FILE_BYTES_MAX: u64 = 1 << 20;

fn read(path: &Path) -> Result<File, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.into(), source };
    let reader: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(std::io::stdin()),
        false => Box::new(std::fs::File::open(path).map_err(failed)?),
    };
    let text = std::io::read_to_string(reader.take(FILE_BYTES_MAX + 1)).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(std::io::Error::other("it is longer than 1 MiB, so it is no configuration")));
    }
    toml::from_str(&text).map_err(|error| ConfigError::Parse { path: path.into(), reason: error.to_string() })
}

/// One line of the section `[peers]`.
fn peer(name: &str, addresses: Vec<String>) -> Result<(NodeName, Vec<String>), ConfigError> {
    let invalid = |reason: String| ConfigError::Invalid { setting: "peers", reason };
    let known = name.parse().map_err(|error: IdError| invalid(format!("{name:?}: {error}")))?;
    if !(1..=ADDRESSES_MAX).contains(&addresses.len()) {
        return Err(invalid(format!("{name} has {} addresses, and not 1 to {ADDRESSES_MAX}", addresses.len())));
    }
    let addresses = addresses.into_iter().map(|address| check_address("peers", address));
    Ok((known, addresses.collect::<Result<_, _>>()?))
}

fn check_address(setting: &'static str, address: String) -> Result<String, ConfigError> {
    let invalid = |reason| Err(ConfigError::Invalid { setting, reason });
    match is_address(&address) {
        false => invalid(format!("{address:?} is not HOST:PORT in ASCII letters")),
        true if !can_be_dialled(&address) => invalid(format!("{address} is no address that others can dial")),
        true => Ok(address),
    }
}

/// Whether an address may be that of one node: 0.0.0.0 is where a daemon listens, and a multicast address is no single node.
pub fn can_be_dialled(address: &str) -> bool {
    let is_one = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
    };
    address.parse().map_or(true, |address: SocketAddr| is_one(address.ip().to_canonical()))
}

/// The name of this host up to the first dot, in lower case.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().split('.').next().unwrap_or_default().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("quorated.toml");
        std::fs::write(&path, text).expect("writes");
        Config::load(Flags { config: Some(path), ..Flags::default() })
    }

    /// Mutated: an address that is taken without this check is recorded, and others cannot dial it.
    #[test]
    fn what_nobody_can_dial_is_not_advertised() {
        for address in ["0.0.0.0:7250", "[::]:7250", "224.0.0.1:7250", "255.255.255.255:7250", "[ff02::1]:7250"] {
            let error = with_file(&format!("{MINIMAL}advertise = '{address}'\n")).expect_err(address);
            assert!(error.to_string().contains("no address that others can dial"), "{error}");
            let error = with_file(&format!("{MINIMAL}[peers]\nn2 = ['{address}']\n")).expect_err(address);
            assert!(error.to_string().contains("no address that others can dial"), "{error}");
        }
        with_file(&format!("{MINIMAL}advertise = 'n1.example:7250'\n")).expect("the control: a name");
    }

    #[test]
    fn a_configuration_without_end_is_refused() {
        let endless = Flags { config: Some("/dev/zero".into()), ..Flags::default() };
        let error = Config::load(endless).expect_err("refused").to_string();
        assert!(error.contains("/dev/zero"), "{error}");
    }

    const MINIMAL: &str = "data = '/d'\nlisten = '127.0.0.1:7250'\nname = 'n1'\n";

    #[test]
    fn flags_override_the_file() {
        let config = with_file(MINIMAL).expect("a good file");
        assert_eq!((config.advertise.as_str(), config.name.as_str()), ("127.0.0.1:7250", "n1"));
        assert_eq!(config.socket, Path::new(SOCKET));
    }

    #[test]
    fn a_member_is_expected_by_flag_over_environment_over_file() {
        use clap::Parser;
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), format!("{MINIMAL}expect_member = true\n")).expect("writes");
        let path = file.path().to_str().expect("UTF-8");
        let expects = |flags: &[&str]| {
            let flags = Flags::try_parse_from(["quorated", "--config", path].iter().chain(flags)).expect("flags");
            Config::load(flags).expect("a good file").expect_member
        };
        assert!(expects(&[]) && expects(&["--expect-member"]) && !expects(&["--expect-member=false"]));
        assert!(!with_file(MINIMAL).expect("a good file").expect_member, "the default");
    }

    #[test]
    fn an_unknown_setting_is_refused_with_its_line() {
        let error = with_file(&format!("{MINIMAL}lease = 3\n")).expect_err("unknown");
        assert!(error.to_string().contains("line 4"), "{error}");
    }

    /// Mutated: an address that is advertised because the node listens there is not looked at; a network in the other form is taken as it
    /// is; a product overflows; the line end of another system is part of a path.
    #[test]
    fn what_cannot_work_is_refused_or_read() {
        let invalid = |text: &str| with_file(text).expect_err(text).to_string();
        for listen in ["224.0.0.1:7250", "255.255.255.255:7250", "[::ffff:0.0.0.0]:7250"] {
            let error = invalid(&MINIMAL.replace("127.0.0.1:7250", listen));
            assert!(error.contains("reached from another machine") || error.contains("others can dial"), "{error}");
        }
        let config = with_file(&format!("{MINIMAL}unlock_from = ['::ffff:10.0.0.0/104']\n")).expect("the same network");
        let may = |address: &str| config.may_unlock_from(address.parse().expect("an address"));
        assert!(may("10.0.0.7") && may("::ffff:10.9.9.9") && !may("11.0.0.7"));
        let error = invalid(&format!("{MINIMAL}[timing]\nheartbeat_ms = {}\n", i64::MAX));
        assert!(error.contains("timing.election_ms"), "{error}");
        let error = invalid(&format!("{MINIMAL}socket = \"/d/socket\\r\"\n"));
        assert!(error.contains(r"/d/socket\r") && error.contains("control character"), "{error}");
    }

    #[test]
    fn a_timing_below_its_floor_is_refused() {
        let error = with_file(&format!("{MINIMAL}[timing]\nlease_ms = 100\n")).expect_err("too short");
        assert!(error.to_string().contains("timing.lease_ms"), "{error}");
    }

    #[test]
    fn a_lease_has_a_ceiling() {
        let with = |lease_ms: u64| with_file(&format!("{MINIMAL}[timing]\nlease_ms = {lease_ms}\n"));
        assert_eq!(with(LEASE_MS_MAX).expect("the longest").timing.lease_ms(), LEASE_MS_MAX);
        let error = with(LEASE_MS_MAX + 1).expect_err("longer");
        assert_eq!(error.to_string(), "timing.lease_ms = 60001 is above its ceiling of 60000");
    }

    #[test]
    fn a_pin_has_one_place_and_that_is_not_the_data_directory() {
        let pin = |settings: &str| with_file(&format!("{MINIMAL}{settings}\n")).map(|config| config.pin);
        assert_eq!(pin("").expect("the default"), PinAt::Vault);
        assert_eq!(pin("pin_file = '/media/pin'").expect("elsewhere"), PinAt::File("/media/pin".to_owned()));
        let credential = pin("pin_credential = 'quorate.pin'").expect("a credential");
        assert_eq!(credential, PinAt::Credential("quorate.pin".to_owned()));
        for refused in [
            "pin_file = '/d/pin'",
            "pin_file = '/d/../d/pin'",
            "pin_file = 'pin'",
            "pin_file = '/media/pin'\npin_credential = 'pin'",
            "pin_credential = '../pin'",
            "pin_credential = ''",
        ] {
            assert!(matches!(pin(refused), Err(ConfigError::Invalid { .. })), "{refused}");
        }
    }

    #[test]
    fn peers_are_unlocked_from_the_named_networks_or_from_everywhere() {
        let may = |settings: &str, address: &str| {
            let config = with_file(&format!("{MINIMAL}{settings}\n")).expect("a good file");
            config.may_unlock_from(address.parse().expect("an address"))
        };
        assert!(may("", "203.0.113.1"));
        let settings = "unlock_from = ['10.0.0.0/24', 'fd00::/8']";
        for address in ["10.0.0.7", "::ffff:10.0.0.7", "fd12::1"] {
            assert!(may(settings, address), "{address}");
        }
        for address in ["10.0.1.7", "::ffff:10.0.1.7", "2001:db8::1"] {
            assert!(!may(settings, address), "{address}");
        }
        for refused in ["unlock_from = []", "unlock_from = ['10.0.0.0/33']", "unlock_from = ['n2']"] {
            assert!(with_file(&format!("{MINIMAL}{refused}\n")).is_err(), "{refused}");
        }
    }

    #[test]
    fn peers_may_be_elsewhere() {
        let peers = |section: &str| with_file(&format!("{MINIMAL}[peers]\n{section}\n")).map(|config| config.peers);
        let known = peers("n2 = ['10.1.0.2:7250', '[fd00::2]:7250']\nn3 = ['n3.example:7250']").expect("a good file");
        let addresses: Vec<_> = known.values().map(Vec::len).collect();
        assert_eq!(addresses, [2, 1]);
        assert!(with_file(MINIMAL).expect("a good file").peers.is_empty());
        for refused in ["n2 = []", "n2 = ['10.1.0.2']", "N2 = ['10.1.0.2:7250']", "n2 = '10.1.0.2:7250'"] {
            assert!(peers(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn an_address_that_cannot_be_reached_is_refused() {
        let error = with_file("data = '/d'\nlisten = '0.0.0.0:7250'\nname = 'n1'\n").expect_err("unreachable");
        assert!(error.to_string().contains("--advertise"), "{error}");
    }
}
