//! The environment, the umask and the limits of daemons and commands.

use std::path::Path;
use std::process::Command;

/// Of the caller's own settings only the log level is passed on; all else must be asked for here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) umask: Option<u16>,
    pub(crate) memlock_bytes: Option<u32>,
    pub(crate) open_files: Option<u32>,
    pub(crate) file_bytes: Option<u64>,
}

/// Sets what Rust can set for this whole process only, and then becomes the program. A limit of locked memory does not
/// bind root, so root gives up that privilege as well. A file that may not grow is an error like any other, and no signal.
const SHELL: &str = r#"
[ -z "$UMASK" ] || umask "$UMASK"
[ -z "$OPEN_FILES" ] || ulimit -n "$OPEN_FILES"
[ -z "$FILE_BLOCKS" ] || { trap '' XFSZ; ulimit -f "$FILE_BLOCKS"; }
[ -n "$MEMLOCK_KIB" ] || exec "$@"
ulimit -l "$MEMLOCK_KIB"
[ "$(id -u)" != 0 ] || exec setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock "$@"
exec "$@"
"#;

impl Surroundings {
    /// A command that runs `program` in these.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let settings = [
            ("UMASK", self.umask.map(|umask| format!("{umask:03o}"))),
            ("OPEN_FILES", self.open_files.map(|files| files.to_string())),
            ("MEMLOCK_KIB", self.memlock_bytes.map(|bytes| (bytes / 1024).to_string())),
            ("FILE_BLOCKS", self.file_bytes.map(|bytes| (bytes / 512).to_string())),
        ];
        let mut command = match settings.iter().all(|(_, value)| value.is_none()) {
            true => Command::new(program),
            false => {
                let mut shell = Command::new("/bin/sh");
                shell.envs(settings.map(|(name, value)| (name, value.unwrap_or_default())));
                shell.args(["-c", SHELL, "sh"]).arg(program);
                shell
            }
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("QUORATE") && name != "QUORATE_LOG" {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_finds_what_was_asked_for() {
        let environment = vec![("QUORATE_TESTED".to_owned(), "yes".to_owned())];
        let around = Surroundings {
            environment,
            umask: Some(0o027),
            memlock_bytes: Some(8192),
            open_files: Some(99),
            file_bytes: Some(4096),
        };
        let script = "umask; ulimit -l; ulimit -n; ulimit -f; echo \"$QUORATE_TESTED\"; echo \"$1 $2\"";
        let output =
            around.command(Path::new("/bin/sh")).args(["-c", script, "sh", "a b", "c"]).output().expect("runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "0027\n8\n99\n8\nyes\na b c\n");
    }
}
