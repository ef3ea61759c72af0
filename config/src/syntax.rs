//! What a person is told about a text that is not valid TOML.

use toml::de::Error;

use crate::diagnostics::Problem;

/// Errors of syntax that are told of one file. What comes after them is often a consequence.
const MAX_ERRORS: usize = 5;
/// Lines with errors from which on a file may be no TOML at all.
const MIN_FOREIGN_LINES: usize = 3;

/// One problem for a text that is no TOML at all; else one for each line that has an error.
pub fn problems(text: &str, errors: &[Error]) -> Vec<Problem> {
    let line_of = |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count();
    let mut found: Vec<(usize, Problem)> = errors
        .iter()
        .map(|error| {
            let span = error.span().unwrap_or(0..0);
            (line_of(span.start), Problem { span, message: error.message().to_owned(), help: None })
        })
        .collect();
    found.sort_by_key(|(line, problem)| (*line, problem.span.start));
    found.dedup_by_key(|(line, _)| *line);
    let significant = text.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')).count();
    if found.len() >= MIN_FOREIGN_LINES && found.len() * 2 > significant || starts_as_other(text) {
        return vec![no_toml(text)];
    }
    let left = found.len().saturating_sub(MAX_ERRORS);
    found.truncate(MAX_ERRORS);
    if let Some((_, last)) = found.last_mut().filter(|_| left > 0) {
        last.help = Some(format!("{left} more line{} have errors of syntax", if left == 1 { "" } else { "s" }));
    }
    found.into_iter().map(|(_, problem)| problem).collect()
}

fn significant_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Texts of other formats that may have few lines.
fn starts_as_other(text: &str) -> bool {
    significant_lines(text).next().is_some_and(|line| line.starts_with(['{', '<']) || line == "---")
}

fn no_toml(text: &str) -> Problem {
    let first = significant_lines(text).next().unwrap_or_default();
    let start = text.find(first).unwrap_or(0);
    let is_yaml =
        |line: &str| line.starts_with("- ") || line.ends_with(':') || line.split_once(": ").is_some_and(|(key, _)| !key.contains(' '));
    let format = if first.starts_with('{') {
        ", but looks like JSON"
    } else if first.starts_with('<') {
        ", but looks like HTML or XML"
    } else if first == "---" || significant_lines(text).all(is_yaml) {
        ", but looks like YAML"
    } else {
        ""
    };
    let help = "TOML has tables and keys, such as:\n[cluster]\nname = \"demo\"".to_owned();
    Problem { span: start..start + first.len(), message: format!("this file is not TOML{format}"), help: Some(help) }
}

#[cfg(test)]
mod tests {
    use crate::Cluster;

    fn messages(text: &str) -> Vec<String> {
        let error = Cluster::read("c.toml", text).expect_err("broken");
        error.problems.into_iter().map(|problem| problem.message).collect()
    }

    #[test]
    fn a_file_of_another_format_is_one_problem() {
        let yaml = "# A cluster.\ncluster:\n  name: demo\nprovider:\n  kind: local\nworkers:\n  - default\n  - gpu\n";
        let json = "{\n  \"cluster\": {\n    \"name\": \"demo\"\n  },\n  \"provider\": { \"kind\": \"local\" }\n}\n";
        let html = "<!DOCTYPE html>\n<html>\n<body>404: not found</body>\n</html>\n";
        let prose = "Dear all,\nthe cluster is down again.\nPlease bring it up.\nYours\n";
        for (text, format) in [(yaml, "looks like YAML"), (json, "looks like JSON"), (html, "looks like HTML"), (prose, "not TOML")] {
            let found = messages(text);
            assert!(found.len() == 1 && found[0].contains(format), "{found:#?}");
        }
    }

    #[test]
    fn errors_of_syntax_are_one_a_line_and_not_many() {
        let good: String = (0..40).map(|n| format!("a{n} = 1\n")).collect();
        assert_eq!(messages(&format!("{good}b = = = 1\n")).len(), 1);
        let found = Cluster::read("c.toml", &format!("{good}{}", "b = = 1\n".repeat(20))).expect_err("broken").problems;
        let last = found.last().and_then(|problem| problem.help.clone());
        assert_eq!((found.len(), last.as_deref()), (5, Some("15 more lines have errors of syntax")));
    }
}
