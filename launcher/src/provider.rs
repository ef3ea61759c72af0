//! `cloudtik provider`: the providers that there are, and the contract run on one of them.

mod gate;
mod ground;

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::pin;

use cloudtik_providers::conformance::Breach;
use cloudtik_registry::registry;
use serde::Serialize;

use self::ground::{Ended, Ground, NAME};
use crate::cli::Provider;
use crate::described::describe;
use crate::failure::{FAILED, Failure, INTERRUPTED};
use crate::interrupts::Interrupts;
use crate::output::Printer;

#[derive(Serialize)]
struct Report<'a> {
    provider: &'a str,
    passed: bool,
    clauses: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    breach: Option<Broken<'a>>,
    /// Why something that was created may be left.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_deleted: Option<&'a str>,
}

#[derive(Serialize)]
struct Broken<'a> {
    clause: &'a str,
    found: &'a str,
}

pub async fn run(printer: &Printer, command: Provider) -> Result<u8, Failure> {
    match command {
        Provider::List => {
            list(printer);
            Ok(0)
        }
        Provider::Check { file, machines, yes } => check(printer, &file, machines as usize, yes).await,
    }
}

fn list(printer: &Printer) {
    #[derive(Serialize)]
    struct Listed<'a> {
        name: &'a str,
        summary: &'a str,
    }
    let all: Vec<_> = registry().kinds().map(|kind| Listed { name: kind.name(), summary: kind.summary() }).collect();
    if printer.is_json() {
        return printer.json(&all);
    }
    let rows: Vec<_> = all.iter().map(|kind| vec![kind.name.to_owned(), kind.summary.to_owned()]).collect();
    printer.table(&["PROVIDER", "SUMMARY"], &rows);
}

/// The clauses that hold, each once.
struct Clauses<'a> {
    printer: &'a Printer,
    known: BTreeSet<String>,
    all: Vec<String>,
}

impl Clauses<'_> {
    fn record(&mut self, clause: &str) {
        if !self.known.insert(clause.to_owned()) {
            return;
        }
        self.all.push(clause.to_owned());
        if !self.printer.is_json() {
            self.printer.line(&format!("ok    {clause}"));
        }
    }
}

async fn check(printer: &Printer, file: &Path, machines: usize, yes: bool) -> Result<u8, Failure> {
    let described = describe(file)?;
    let name = described.provider.kind().name();
    described.provider.machines()?;
    printer.confirm_async(&format!("Create up to {machines} machines of the provider {name}, and delete them?"), yes).await?;
    let mut interrupts = Interrupts::listen()?;
    let ground = Ground::make(&described)?;
    let mut clauses = Clauses { printer, known: BTreeSet::new(), all: Vec::new() };
    let outcome = run_suites(printer, &ground, machines, &mut clauses, &mut interrupts).await;
    let not_deleted = match &outcome {
        Ok(()) => None,
        Err(_) => tokio::select! {
            cleared = ground.clear() => cleared.err().map(|failure| failure.message),
            () = interrupts.next() => Some("interrupted again".to_owned()),
        },
    };
    let breach = match outcome {
        Ok(()) => None,
        Err(Ended::Breach(breach)) => Some(breach),
        Err(Ended::Failure(failure)) => return Err(explained(failure, not_deleted.as_deref())),
    };
    if printer.is_json() {
        let broken = breach.as_ref().map(|breach| Broken { clause: &breach.clause, found: &breach.found });
        let not_deleted = not_deleted.as_deref();
        printer.json(&Report { provider: name, passed: breach.is_none(), clauses: clauses.all, breach: broken, not_deleted });
        return Ok(if breach.is_none() { 0 } else { FAILED });
    }
    match breach {
        None => {
            printer.say(&format!("the provider {name} keeps the contract: {} clauses", clauses.all.len()));
            Ok(0)
        }
        Some(Breach { clause, found }) => {
            printer.line(&format!("FAIL  {clause}"));
            let failure = Failure::new(FAILED, format!("the provider {name} breaks the contract: {clause}: {found}"));
            let failure = failure.hint("docs/providers/external.md says what a provider promises");
            Err(explained(failure, not_deleted.as_deref()))
        }
    }
}

/// Runs the suites until their end or an interrupt. What is being created then is waited for, so that it is deleted with the rest.
async fn run_suites(
    printer: &Printer,
    ground: &Ground<'_>,
    machines: usize,
    clauses: &mut Clauses<'_>,
    interrupts: &mut Interrupts,
) -> Result<(), Ended> {
    let mut record = |clause: &str| clauses.record(clause);
    let mut suites = pin!(ground.run(machines, &mut record));
    tokio::select! {
        outcome = &mut suites => return outcome,
        () = interrupts.next() => {}
    }
    printer.say("interrupted; deleting what was created");
    tokio::select! {
        _ = suites => {}
        () = ground.settled() => {}
        () = interrupts.next() => {}
    }
    Err(Failure::new(INTERRUPTED, "interrupted").into())
}

/// Says what became of what a check had created.
fn explained(failure: Failure, not_deleted: Option<&str>) -> Failure {
    match not_deleted {
        None if failure.code == INTERRUPTED => Failure { message: format!("{}; what was created is deleted", failure.message), ..failure },
        None => failure,
        Some(why) => {
            let left =
                format!("what was created may be left, and is to be deleted by hand: the cluster and the workspace are called {NAME}");
            let hint = failure.hint.as_ref().map_or_else(|| left.clone(), |hint| format!("{hint}\n{left}"));
            Failure { message: format!("{}; the clean-up failed: {why}", failure.message), ..failure }.hint(hint)
        }
    }
}
