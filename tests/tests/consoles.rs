//! The consoles of the shipped runtimes, opened in a real browser.

use std::collections::BTreeSet;

use cloudtik_tests::browser::Browser;
use cloudtik_tests::{Cluster, repository, skipped};

const SPEC: &str = "[workers.default]\nmin = 1\nmax = 1\ncpus = 1\nmemory = \"1.5GiB\"\n[runtimes.spark]\n[runtimes.prometheus]";
/// Faults of the software itself: the page, and how the error begins. Spark 4.3.0 loads a module as a plain script there.
const KNOWN: [(&str, &str); 1] = [(":8080/environment", "environmentpage.js 19:0 Uncaught SyntaxError: Cannot use import statement")];
/// Pages that are opened of one console.
const MAX_PAGES: usize = 25;

#[test]
fn every_page_of_the_shipped_consoles_loads_all_that_it_needs() {
    if !Browser::is_installed() {
        skipped("opening consoles needs Chromium (apt-get install chromium chromium-driver)");
        return;
    }
    let cluster = Cluster::new("consoles", SPEC).with_shared_software();
    cluster.up();
    // So that the history has pages to show.
    let job = repository().join("examples/jobs/wordcount.py").display().to_string();
    cluster.run(&["submit", "consoles", &job, "/usr/share/common-licenses/GPL-3"]).ok();

    let browser = Browser::start();
    let consoles: Vec<_> = cluster.status().runtimes.into_iter().flat_map(|r| r.endpoints).collect();
    let names: BTreeSet<&str> = consoles.iter().map(|c| c.name.as_str()).collect();
    for name in ["Prometheus", "Spark master", "Spark worker", "Spark history"] {
        assert!(names.iter().any(|known| known.starts_with(name)), "{name} is not among {names:?}");
    }
    let mut broken = Vec::new();
    for console in &consoles {
        let opened = crawl(&browser, &console.url, &mut broken);
        println!("{}: {opened:#?}", console.name);
        // Prometheus has its graph, alerts and seven pages of its status; the others have at least the page itself.
        let least = if console.name.starts_with("Prometheus") { 9 } else { 1 };
        assert!(opened.len() >= least, "{}: only {opened:?}", console.name);
    }
    assert!(broken.is_empty(), "{broken:#?}");
    drop(browser);
    cluster.down();
    cluster.assert_nothing_left();
}

/// Opens a console and the pages that it leads to on its own server; adds what went wrong to `broken`.
fn crawl(browser: &Browser, console: &str, broken: &mut Vec<String>) -> Vec<String> {
    let (mut opened, mut pending) = (Vec::new(), vec![console.to_owned()]);
    while let Some(url) = pending.pop() {
        if opened.contains(&url) || opened.len() == MAX_PAGES {
            continue;
        }
        let page = browser.open(&url);
        let is_known = |error: &&String| KNOWN.iter().any(|(page, what)| url.ends_with(page) && error.contains(what));
        broken.extend(page.errors.iter().filter(|error| !is_known(error)).map(|error| format!("{url}: {error}")));
        if page.answered == 0 || page.text.trim().is_empty() {
            broken.push(format!("{url}: the page is empty"));
        }
        // Files, metrics, and the same page in another order are no pages of their own.
        let is_page =
            |link: &String| link.starts_with(console) && !["/download", "/logs", "/metrics", ".sort="].iter().any(|no| link.contains(no));
        pending.extend(page.links.into_iter().filter(is_page).map(|link| link.trim_end_matches('/').to_owned()));
        opened.push(url);
    }
    opened
}
