//! The daemon of Quorate: `quorated`.
//!
//! Each folder answers one question. The reading order is the order below, from what knows nothing of a node to what starts it: a
//! folder imports from itself and from those that are named before it. A test holds that.

// What needs no node: clocks, configuration, randomness, limits.
pub mod base;
// What lies on the disk.
pub mod vault;

// What is kept in memory and nowhere else: types without a node.
pub mod memory;
// What nodes say to each other.
pub mod messages;
// What the parts of a node share.
pub mod node;

// How nodes talk to each other.
pub mod peers;

// How a node earns the right to serve.
pub mod lease;

// How a key is put together and dealt.
pub mod keys;
// How a node is unlocked, and how its lock is renewed.
pub mod lock;

// How the leader leads and the members follow.
pub mod cluster;
// How a node comes into a cluster.
pub mod join;

// What may be asked.
pub mod service;

// Where questions arrive.
pub mod serve;

// How a damaged state is replaced.
pub mod rebuild;

// How all of it starts.
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

    /// The order is that of the `pub mod` lines of this file. Comments may look up, tests may not.
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
            // `main.rs` and this file stand above all.
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
