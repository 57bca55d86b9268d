//! Completions and manual pages. Both are generated from the definitions of the command line, so they always agree with
//! it.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::Failure;
use crate::{Session, exit};

/// Prints a script that makes a shell complete `quorate`.
pub(crate) fn completions(session: &mut Session<'_>, shell: Shell) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "quorate", &mut script);
    session.result(&script)?;
    Ok(exit::DONE)
}

/// Writes `quorate.1`, `quorate-key.1`, `quorate-key-create.1` and so on into `directory`.
pub(crate) fn pages(session: &mut Session<'_>, directory: &Path) -> Result<u8, Failure> {
    let mut root = Cli::command();
    root.build();
    let failed = |error: std::io::Error| Failure::new(exit::FAILED, format!("{}: {error}", directory.display()));
    std::fs::create_dir_all(directory).map_err(failed)?;
    write_page(session, &root, directory)?;
    session.note(&format!("to read them from there: man -l {}", directory.join("quorate.1").display()));
    Ok(exit::DONE)
}

/// Writes the page of a command and those of the commands in it.
fn write_page(session: &mut Session<'_>, command: &clap::Command, directory: &Path) -> Result<(), Failure> {
    let page = clap_mangen::Man::new(command.clone());
    let mut text = Vec::new();
    page.render(&mut text).map_err(Failure::output)?;
    session.put(Some(&directory.join(page.get_filename())), &text, 0o644)?;
    command.get_subcommands().try_for_each(|inner| write_page(session, inner, directory))
}

#[cfg(test)]
mod tests {
    use clap::{Command, Parser, ValueEnum};

    use super::*;

    /// Every command and every group of commands, with the words that a user types for it.
    fn every_command() -> Vec<(String, Command)> {
        fn walk(typed: &str, command: &Command, found: &mut Vec<(String, Command)>) {
            found.push((typed.to_owned(), command.clone()));
            for inner in command.get_subcommands() {
                walk(&format!("{typed} {}", inner.get_name()), inner, found);
            }
        }
        let mut root = Cli::command();
        root.build();
        let mut found = Vec::new();
        walk("quorate", &root, &mut found);
        assert!(found.len() > 15, "the control: there are commands inside of commands");
        found
    }

    fn run(arguments: &[&str]) -> (u8, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let all = std::iter::once("quorate").chain(arguments.iter().copied()).map(Into::into);
        let code = crate::run(all, &mut std::io::empty(), &mut out, &mut err);
        (code, String::from_utf8(out).expect("text"), String::from_utf8(err).expect("text"))
    }

    /// The example lines in `help`.
    fn examples(help: &str) -> Vec<&str> {
        let shown = help.lines().skip_while(|line| !matches!(*line, "Example:" | "Examples:")).skip(1);
        shown.map_while(|line| line.strip_prefix("  ")).collect()
    }

    /// The calls of `quorate` in a line of shell, split into words.
    fn calls(line: &str) -> Vec<Vec<String>> {
        let parts = line.split(" | ").flat_map(|part| part.split(" > ")).flat_map(|part| part.split(" && "));
        // A redirected file is not a word of the call.
        let parts = parts.map(|part| part.split(" < ").next().unwrap_or_default());
        let words = |part: &str| part.split_whitespace().map(|word| word.replace('\'', "")).collect::<Vec<_>>();
        parts.map(words).filter(|words| words.first().is_some_and(|first| first == "quorate")).collect()
    }

    #[test]
    fn the_help_of_every_command_shows_an_example_of_it() {
        for (typed, _) in every_command() {
            let words: Vec<_> = typed.split(' ').skip(1).collect();
            let (code, help, err) = run(&[&words[..], &["--help"]].concat());
            assert_eq!((code, err.as_str()), (0, ""), "{typed}");
            assert_eq!(run(&[&["help"], &words[..]].concat()).1, help, "the other way to ask for the help of {typed}");
            let own = examples(&help).into_iter().flat_map(calls).filter(|call| call.join(" ").starts_with(&typed));
            assert!(own.count() > 0, "{typed} --help has no example:\n{help}");
        }
    }

    #[test]
    fn every_example_is_understood() {
        for (typed, _) in every_command() {
            let words: Vec<_> = typed.split(' ').skip(1).collect();
            for call in examples(&run(&[&words[..], &["--help"]].concat()).1).into_iter().flat_map(calls) {
                let parsed = Cli::try_parse_from(&call).map(drop);
                parsed.unwrap_or_else(|error| panic!("{typed} --help shows {call:?}: {error}"));
            }
        }
        let made_up = calls("echo x | quorate encrypt --turbo k > y").remove(0);
        assert!(Cli::try_parse_from(made_up).is_err(), "the control: not everything is");
    }

    #[test]
    fn the_completions_of_every_shell_know_every_command_and_option() {
        for shell in Shell::value_variants() {
            let name = shell.to_string();
            let (code, script, err) = run(&["completions", &name]);
            assert_eq!((code, err.as_str()), (0, ""), "{name}");
            for (typed, command) in every_command() {
                let last = command.get_name();
                assert!(script.contains(last), "{name} does not complete {typed}");
                for option in command.get_arguments().filter_map(clap::Arg::get_long) {
                    assert!(script.contains(option), "{name} does not complete {typed} --{option}");
                }
            }
        }
        assert_eq!(run(&["completions", "cmd"]).0, exit::USAGE);
    }

    #[test]
    fn every_command_has_a_manual_page_with_its_options_and_examples() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (code, out, err) = run(&["man", directory.path().to_str().expect("text")]);
        assert_eq!((code, out.as_str()), (0, ""), "{err}");
        let commands = every_command();
        for (typed, command) in &commands {
            let name = format!("{}.1", typed.replace(' ', "-"));
            let page = std::fs::read_to_string(directory.path().join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            let page = page.replace("\\-", "-").replace("\\*(Aq", "'").replace("\\(aq", "'");
            for option in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(page.contains(&format!("--{option}")), "{name} lacks --{option}");
            }
            let words: Vec<_> = typed.split(' ').skip(1).collect();
            for example in examples(&run(&[&words[..], &["--help"]].concat()).1) {
                assert!(page.contains(example), "{name} lacks the example {example}:\n{page}");
            }
        }
        let pages = std::fs::read_dir(directory.path()).expect("there").count();
        assert_eq!(pages, commands.len(), "and there is no page of anything else");
        let new = directory.path().join("made/man1");
        assert_eq!(run(&["man", new.to_str().expect("text")]).0, exit::DONE);
        assert!(new.join("quorate.1").exists(), "a directory that was not there");
        let (code, _, err) = run(&["man", "/dev/null/man1"]);
        assert!(code == exit::FAILED && err.starts_with("quorate: /dev/null/man1: "), "{err}");
    }
}
