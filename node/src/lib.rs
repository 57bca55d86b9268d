//! The daemon of Quorate: `quorated`.
//!
//! Each folder answers one question. The modules stand in reading order, from parts that need no node to the start of the
//! daemon. A folder imports only from itself and from folders above it in this list. A test checks that.
#![warn(clippy::print_stderr)] // what a daemon says goes through its log

// Parts that need no node: clocks, configuration, randomness, limits.
pub mod base;
// The vault, a small file: what a node needs to boot.
pub mod vault;

// What is kept in memory and nowhere else: types without a node.
pub mod memory;
// The messages between nodes, as types.
pub mod messages;
// The `Node`, and the parts that it consists of.
pub mod node;

// Sessions between nodes, and what they carry.
pub mod peers;

// How a node gets the right to serve, and loses it.
pub mod lease;

// How a key is reconstructed from shares, and dealt to them.
pub mod keys;
// How a node is unlocked, how its lock is renewed, and what it holds for the locks of its peers.
pub mod lock;

// What the leader does, and how the members follow it.
pub mod cluster;
// How a cluster is founded, and how a node joins one.
pub mod join;

// Which requests there are, what each needs, and their handlers.
pub mod service;

// The doors where requests come in: QUIC and the local socket.
pub mod serve;

// How a damaged state is replaced by another node's.
pub mod rebuild;

// How a node starts, from the configuration to a running node.
pub mod boot;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    fn files(directory: &Path) -> Vec<PathBuf> {
        let entries =
            fs::read_dir(directory).expect("the sources are there").map(|entry| entry.expect("readable").path());
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
    }

    /// The order is that of the `pub mod` lines of this file. Comments may name modules further down; tests may not.
    #[test]
    fn imports_point_one_way() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let lib = fs::read_to_string(src.join("lib.rs")).expect("readable");
        let order: Vec<&str> =
            lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
        let place = |name: &str| order.iter().position(|known| *known == name);
        let (mut imports, mut upward) = (0, Vec::new());
        for file in files(&src) {
            let inside = file.strip_prefix(&src).expect("below it").to_string_lossy().into_owned();
            // `main.rs` and this file may import everything.
            let Some(own) = place(inside.split(['/', '.']).next().unwrap_or_default()) else { continue };
            let source = fs::read_to_string(&file).expect("readable");
            for line in source.lines().filter(|line| !line.trim_start().starts_with("//")) {
                for path in line.split("crate::").skip(1) {
                    let name = path.split(|letter: char| letter != '_' && !letter.is_alphanumeric()).next();
                    imports += 1;
                    if place(name.unwrap_or_default()).is_none_or(|imported| imported > own) {
                        upward.push(format!("{inside}: {}", line.trim()));
                    }
                }
            }
        }
        assert!(imports > 100, "the control: {imports} imports were found");
        assert!(upward.is_empty(), "these imports do not point down in the order of lib.rs:\n{}", upward.join("\n"));
    }
}
