//! Templates: Jinja's language, strict about undefined names, with filters that escape values by the format they stand in.

mod escape;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};

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
    // A value is escaped where its template says so, whatever the template is called.
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    escape::add_filters(&mut environment);
    environment
}

/// Whether the text is a template at all.
pub fn check(text: &str) -> Result<(), String> {
    environment().template_from_str(text).map(|_| ()).map_err(|e| describe(&e))
}

/// The templates of loaded runtimes, each compiled when it is first filled in. A cheap handle; clones share what is compiled.
#[derive(Debug, Clone)]
pub struct Templates {
    environment: Arc<Environment<'static>>,
    compiled: Arc<AtomicU64>,
}

impl Default for Templates {
    fn default() -> Self {
        let (mut environment, compiled) = (environment(), Arc::<AtomicU64>::default());
        let count = compiled.clone();
        // A template is known by its text.
        environment.set_loader(move |text| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(Some(text.to_owned()))
        });
        Self { environment: Arc::new(environment), compiled }
    }
}

impl Templates {
    /// Fills a template in. `name` is what an error calls it. The text is kept: it must be a runtime's, not a value.
    pub fn render(&self, name: &str, text: &str, values: &Value) -> Result<String, Error> {
        if !text.contains("{{") && !text.contains("{%") && !text.contains("{#") {
            return Ok(text.to_owned());
        }
        let rendered = self.environment.get_template(text).and_then(|template| template.render(values));
        rendered.map_err(|e| Error { name: name.to_owned(), message: describe(&e) })
    }

    /// How many templates were compiled.
    pub fn compiled(&self) -> u64 {
        self.compiled.load(Ordering::Relaxed)
    }
}

fn describe(error: &minijinja::Error) -> String {
    let line = error.line().filter(|l| *l > 1).map(|l| format!(" (line {l})")).unwrap_or_default();
    match error.detail() {
        Some(detail) => format!("{}: {detail}{line}", error.kind()),
        None => format!("{}{line}", error.kind()),
    }
}
