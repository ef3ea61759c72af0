//! Templates: Jinja's language, strict about undefined names, with filters that escape values by the format they stand in.

mod escape;

use minijinja::{Environment, UndefinedBehavior, Value};

#[derive(Debug, thiserror::Error)]
#[error("{name}: {message}")]
pub struct Error {
    pub name: String,
    pub message: String,
}

fn environment<'a>() -> Environment<'a> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_keep_trailing_newline(true);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    escape::add_filters(&mut environment);
    environment
}

/// Whether the text is a template at all.
pub fn check(text: &str) -> Result<(), String> {
    environment().template_from_str(text).map(|_| ()).map_err(|e| describe(&e))
}

/// Fills a template in. `name` is what an error calls it.
pub fn render(name: &str, text: &str, values: &Value) -> Result<String, Error> {
    if !text.contains("{{") && !text.contains("{%") && !text.contains("{#") {
        return Ok(text.to_owned());
    }
    environment().render_str(text, values).map_err(|e| Error { name: name.to_owned(), message: describe(&e) })
}

fn describe(error: &minijinja::Error) -> String {
    let line = error.line().filter(|l| *l > 1).map(|l| format!(" (line {l})")).unwrap_or_default();
    match error.detail() {
        Some(detail) => format!("{}: {detail}{line}", error.kind()),
        None => format!("{}{line}", error.kind()),
    }
}
