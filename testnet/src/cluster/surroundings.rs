//! What daemons and commands find around them: their environment and umask.

use std::path::Path;
use std::process::Command;

/// Nothing of the caller's own settings but how much is logged, unless asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Surroundings {
    pub(super) environment: Vec<(String, String)>,
    pub(super) umask: Option<u16>,
}

impl Surroundings {
    /// A command that runs `program` in these.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = match self.umask {
            // Rust can set the umask of this whole process only; a shell sets its own and then becomes the program.
            Some(umask) => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", "umask \"$0\" && exec \"$@\"", &format!("{umask:03o}")]).arg(program);
                shell
            }
            None => Command::new(program),
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
        let around = Surroundings { environment, umask: Some(0o027) };
        let script = "umask; echo \"$QUORATE_TESTED\"; echo \"$1 $2\"";
        let output =
            around.command(Path::new("/bin/sh")).args(["-c", script, "sh", "a b", "c"]).output().expect("runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "0027\nyes\na b c\n");
    }
}
