//! Commands as people type them: what to do where one cannot run, or was not set apart with `--`.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches};

use crate::cli::{Arguments, Command};
use crate::failure::{Failure, USAGE};
use crate::output::quoted;

/// The exit statuses of what cannot be started, as shells have them.
const NOT_A_PROGRAM: u8 = 126;
const NOT_FOUND: u8 = 127;
/// What shells do themselves.
const BUILT_IN: [&str; 12] = [".", "alias", "bg", "cd", "eval", "export", "fg", "jobs", "set", "source", "ulimit", "umask"];

/// What a person can do about a command that cannot be started. `line` is the command line up to the command.
pub fn hint(line: &str, code: u8, command: &[String]) -> Option<String> {
    let program = command.first()?;
    let for_shell = |text: &str| format!("{line} -- sh -c {}", quoted(text));
    match command {
        _ if code == NOT_A_PROGRAM => {
            Some(format!("name a program; a script that is not executable runs with its interpreter: `{line} -- sh {}`", quoted(program)))
        }
        _ if code != NOT_FOUND => None,
        _ if program.is_empty() => Some(format!("name the program after `--`: `{line} -- PROGRAM`")),
        _ if is_assignment(program) => {
            Some(format!("`env` sets variables: `{line} -- env {}`", joined(command.iter().map(String::as_str))))
        }
        [text] if is_for_shell(text) => Some(format!("a whole command in one word needs a shell: `{}`", for_shell(text))),
        _ if BUILT_IN.contains(&program.as_str()) => {
            Some(format!("`{program}` is a command of shells: `{}`", for_shell(&command.join(" "))))
        }
        _ => None,
    }
}

/// Whether a word sets a variable, as shells have it: `NAME=VALUE`.
fn is_assignment(word: &str) -> bool {
    let is_name =
        |name: &str| !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    word.split_once('=').is_some_and(|(name, _)| !name.is_empty() && is_name(name))
}

/// Whether only a shell makes a command of it.
fn is_for_shell(text: &str) -> bool {
    text.contains(|c: char| c.is_whitespace() || "|&;<>()$`".contains(c))
}

fn joined<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

/// Of a line that cannot be understood: the failure to tell if it would be right with `--` before the command of `exec`.
pub fn without_separator(line: &[OsString]) -> Option<Failure> {
    let words: Vec<&str> = line.iter().map(|word| word.to_str()).collect::<Option<_>>()?;
    // One that stands further back is the command's own.
    let end = words.iter().position(|word| *word == "--").unwrap_or(words.len());
    let (words, rest) = words.split_at(end);
    let lenient = Arguments::command().mut_subcommand("exec", |exec| {
        let exec = exec.mut_arg("cluster", |cluster| cluster.required(true));
        exec.mut_arg("command", |command| command.last(false).trailing_var_arg(true).allow_hyphen_values(true))
    });
    let matches = lenient.try_get_matches_from(words).ok()?;
    let Command::Exec(exec) = Arguments::from_arg_matches(&matches).ok()?.command else { return None };
    let (before, command) = words.split_at(words.len().checked_sub(exec.command.len())?);
    // An option that does not exist is another mistake.
    if command != exec.command || command.first()?.starts_with('-') {
        return None;
    }
    let line = format!("cloudtik {}", joined(before.iter().skip(1).copied()));
    let hint = match command {
        [text] if is_for_shell(text) && rest.is_empty() => format!("{line} -- sh -c {}", quoted(text)),
        _ => format!("{line} -- {}", joined(command.iter().chain(rest).copied())),
    };
    Some(Failure::new(USAGE, "`--` is missing before the command").hint(format!("`{hint}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str]) -> Vec<String> {
        line.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_command_that_only_a_shell_understands_is_given_to_one() {
        let hint = |code, command: &[&str]| hint("cloudtik exec demo", code, &words(command)).unwrap_or_default();
        assert_eq!(hint(127, &["echo a > f"]), "a whole command in one word needs a shell: `cloudtik exec demo -- sh -c 'echo a > f'`");
        assert_eq!(hint(127, &["cd", "/tmp"]), "`cd` is a command of shells: `cloudtik exec demo -- sh -c 'cd /tmp'`");
        assert!(hint(126, &["./job"]).ends_with("`cloudtik exec demo -- sh ./job`"));
        assert_eq!(hint(127, &["no-such"]), "");
        assert_eq!(hint(127, &["FOO=a b", "env"]), "`env` sets variables: `cloudtik exec demo -- env 'FOO=a b' env`");
        assert_eq!(hint(127, &[""]), "name the program after `--`: `cloudtik exec demo -- PROGRAM`");
        for no_variable in ["=x", "1A=x", "a-b=x"] {
            assert_eq!(hint(127, &[no_variable]), "");
        }
        assert_eq!(hint(1, &["echo a > f"]), "");
    }

    #[test]
    fn a_missing_separator_is_told_with_the_right_line() {
        let failure = |line: &[&str]| {
            let line: Vec<OsString> = line.iter().map(OsString::from).collect();
            without_separator(&line).map(|failure| (failure.message, failure.hint.unwrap_or_default()))
        };
        let told = |hint: &str| Some(("`--` is missing before the command".to_owned(), format!("`cloudtik {hint}`")));
        assert_eq!(failure(&["cloudtik", "exec", "demo", "ls", "-l"]), told("exec demo -- ls -l"));
        assert_eq!(failure(&["cloudtik", "exec", "demo", "--node", "w1", "df"]), told("exec demo --node w1 -- df"));
        assert_eq!(failure(&["cloudtik", "-o", "json", "exec", "demo", "echo a > f"]), told("-o json exec demo -- sh -c 'echo a > f'"));
        assert_eq!(failure(&["cloudtik", "exec", "demo", "echo", "hi", "--", "x"]), told("exec demo -- echo hi -- x"));
        assert_eq!(failure(&["cloudtik", "exec", "demo", "echo a", "--", "x"]), told("exec demo -- 'echo a' -- x"));
        assert_eq!(failure(&["cloudtik", "exec", "demo", "--bogus", "--", "x"]), None);
        assert_eq!(failure(&["cloudtik", "exec", "demo", "--bogus"]), None);
        assert_eq!(failure(&["cloudtik", "exec", "demo"]), None);
        assert_eq!(failure(&["cloudtik", "exec", "demo", "--", "ls"]), None);
        assert_eq!(failure(&["cloudtik", "nodes", "demo", "ls"]), None);
    }
}
