//! Numbers that services give, and the signals that policies follow.

use std::collections::BTreeMap;
use std::time::Duration;

use cloudtik_config::reader::Table;
use cloudtik_model::ServiceName;
use cloudtik_model::policy::Counts;

use super::super::{Gauge, Read, Service, Signal};
use super::Checked;

/// Looks at a number this often unless the manifest says otherwise.
const DEFAULT_LOOK: Duration = Duration::from_secs(2);

pub(super) fn read_gauge(mut table: Table<'_>, checked: &Checked<'_>) -> Option<Gauge> {
    let gauge = read_number(&mut table, checked);
    table.finish();
    gauge
}

fn read_number(table: &mut Table<'_>, checked: &Checked<'_>) -> Option<Gauge> {
    let url = table.require_text("http", "\"http://{{ node.address }}:{{ ports.SERVICE.web }}/json/\"").map(|url| checked.text(url));
    let (pointer, metric) = (table.text("pointer"), table.text("metric"));
    let has_labels = table.has("labels");
    let labels = checked.map(table.table("labels"));
    let interval = table.duration("interval").map_or(DEFAULT_LOOK, |d| d.value);
    let timeout = table.duration("timeout").map_or(Duration::from_secs(2), |d| d.value);
    let read = match (pointer, metric) {
        (Some(pointer), None) if !pointer.value.is_empty() && !pointer.value.starts_with('/') => {
            let help = Some("such as \"/workers/*/coresused\"; `*` adds up every element".to_owned());
            checked.problems.note(pointer.span, "a JSON pointer begins with `/`", help);
            return None;
        }
        (Some(pointer), None) => Read::Json { pointer: pointer.value },
        (None, Some(metric)) => Read::Metric { name: metric.value, labels },
        _ => {
            table.problem("a number is read by one of `pointer` (in JSON) and `metric` (in the Prometheus text format)", None);
            return None;
        }
    };
    if has_labels && matches!(read, Read::Json { .. }) {
        table.problem("`labels` have no effect without `metric`", None);
    }
    Some(Gauge { url: url?, read, interval, timeout })
}

pub(super) fn read_signals(root: &mut Table<'_>, checked: &Checked<'_>, services: &[Service]) -> BTreeMap<String, Signal> {
    let mut signals = BTreeMap::new();
    let Some(mut all) = root.table("signals") else { return signals };
    for name in all.names::<String>() {
        let Some(mut table) = all.table(&name.value) else { continue };
        let is_word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !is_word(&name.value) || name.value == cloudtik_model::goal::Gauge::WORK {
            let help = Some("lower-case letters, digits and `_`; `work` is a service's own".to_owned());
            checked.problems.note(name.span.clone(), format!("{:?} is no name for a signal", name.value), help);
        }
        let summary = table.text("summary").map(|s| s.value).unwrap_or_default();
        let service = table.require::<ServiceName>("service", "\"master\"");
        if let Some(service) = service.as_ref().filter(|s| !services.iter().any(|known| known.name == s.value)) {
            checked.problems.note(service.span.clone(), format!("there is no service {}", service.value), None);
        }
        let counts = match table.text("counts") {
            None => Counts::All,
            Some(text) => match text.value.as_str() {
                "all" => Counts::All,
                "waiting" => Counts::Waiting,
                other => {
                    let help = Some("`all` for what runs and what waits, `waiting` for what waits only".to_owned());
                    checked.problems.note(text.span, format!("`counts` is not {other:?}"), help);
                    Counts::All
                }
            },
        };
        let gauge = read_number(&mut table, checked);
        table.finish();
        if let (Some(service), Some(gauge)) = (service, gauge) {
            signals.insert(name.value, Signal { summary, service: service.value, counts, gauge });
        }
    }
    signals
}
