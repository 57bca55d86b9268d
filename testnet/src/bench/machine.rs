//! Where it ran: without that no figure means anything. And what a process used, as the kernel counts it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::base::error::Error;

/// What `/proc` counts processor time in.
const TICKS_PER_SECOND: f64 = 100.0;

/// Machine, load, commit and profile, a line each.
pub(super) fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let (kernel, load) = (read("/proc/sys/kernel/osrelease"), read("/proc/loadavg"));
    let load = load.split(' ').next().unwrap_or("unknown");
    let profile = if cfg!(debug_assertions) { "debug (so these figures mean little)" } else { "release" };
    format!(
        "machine: {model}, {cores} cores, Linux {}; load average when it began: {load}\ncommit: {}, {profile} build\n",
        kernel.trim(),
        commit(COMMIT)
    )
}

fn commit(noted: Option<&str>) -> &str {
    noted.unwrap_or("unknown, since it was built outside of a checkout")
}

/// The commit that this program was built from (`build.rs`).
const COMMIT: Option<&str> = if cfg!(debug_assertions) { Some("not noted") } else { option_env!("QUORATE_COMMIT") };

/// Processor time that a process has used, its own and the kernel's for it.
pub(super) fn processor_time(pid: u32) -> Result<Duration, Error> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(Error::io("read /proc"))?;
    // The name of the program may hold anything; behind its last parenthesis stand plain numbers.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    Ok(Duration::from_secs_f64(ticks / TICKS_PER_SECOND))
}

/// Memory of a process that is in RAM, in bytes.
pub(super) fn resident_bytes(pid: u32) -> Result<u64, Error> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(Error::io("read /proc"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    let kib: u64 = kib.ok_or_else(|| Error::Bench(format!("/proc/{pid}/status has no VmRSS")))?;
    Ok(kib << 10)
}

/// Bytes in the files below a directory whose names end in `ending`. Their lengths: RocksDB reserves more than it has written.
pub(super) fn disk_bytes(directory: &Path, ending: &str) -> Result<u64, Error> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory).map_err(Error::io(directory.display().to_string()))? {
        let entry = entry.map_err(Error::io(directory.display().to_string()))?;
        // A file that RocksDB removes meanwhile takes no space.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += match metadata.is_dir() {
            true => disk_bytes(&entry.path(), ending)?,
            false if entry.file_name().to_string_lossy().ends_with(ending) => metadata.len(),
            false => 0,
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_outside_of_a_checkout_says_so() {
        assert_eq!(commit(Some("1a2b3c4")), "1a2b3c4");
        assert!(commit(None).contains("outside of a checkout"));
    }
}
