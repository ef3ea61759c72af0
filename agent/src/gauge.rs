//! Numbers that services give: read from their own answers, in JSON or in the Prometheus text format.

use std::collections::BTreeMap;
use std::time::Duration;

use cloudtik_model::demand::Quantity;
use cloudtik_model::goal::{Gauge, Read};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::probe::exchange;

/// Reads every gauge at its own pace, for ever. What cannot be read is not there.
pub async fn follow(gauges: &[Gauge], latest: watch::Sender<BTreeMap<String, Quantity>>) {
    let mut due: Vec<Instant> = gauges.iter().map(|_| Instant::now()).collect();
    let mut failing: BTreeMap<&str, String> = BTreeMap::new();
    loop {
        let Some(next) = due.iter().min().copied() else { return std::future::pending().await };
        tokio::time::sleep_until(next).await;
        for (gauge, due) in gauges.iter().zip(&mut due).filter(|(_, due)| **due <= Instant::now()) {
            let value = match read(gauge).await {
                Ok(value) => {
                    failing.remove(gauge.name.as_str());
                    Some(value)
                }
                // Said once as long as it fails the same way.
                Err(why) => {
                    if failing.insert(&gauge.name, why.clone()).as_ref() != Some(&why) {
                        tracing::warn!(number = gauge.name, url = gauge.url, "cannot read a number: {why}");
                    }
                    None
                }
            };
            *due = Instant::now() + Duration::from_millis(gauge.interval_ms.max(100));
            latest.send_if_modified(|all| match value {
                Some(value) => all.insert(gauge.name.clone(), value) != Some(value),
                None => all.remove(&gauge.name).is_some(),
            });
        }
    }
}

/// Reads a gauge once; an error says what is wrong with the answer.
pub async fn read(gauge: &Gauge) -> Result<Quantity, String> {
    let answer = tokio::time::timeout(Duration::from_millis(gauge.timeout_ms), exchange("GET", &gauge.url, "")).await;
    let (status, body) = answer.map_err(|_| "no answer in time".to_owned())?.map_err(|e| e.to_string())?;
    if status != 200 {
        return Err(format!("the answer is {status}"));
    }
    let number = match &gauge.read {
        Read::Json { pointer } => {
            let document = serde_json::from_slice(&body).map_err(|e| format!("the answer is not JSON: {e}"))?;
            in_json(&document, pointer).ok_or_else(|| format!("there is no number at {pointer:?}"))
        }
        Read::Metric { name, labels } => {
            let text = std::str::from_utf8(&body).map_err(|e| format!("the answer is not text: {e}"))?;
            in_metrics(text, name, labels).ok_or_else(|| format!("there is no metric {name} with these labels"))
        }
    };
    // Of what is less than nothing there is nothing.
    number.and_then(|n| if n.is_finite() { Ok(Quantity::nearest(n)) } else { Err(format!("{n} is no number")) })
}

fn in_json(value: &serde_json::Value, pointer: &str) -> Option<f64> {
    let Some((before, after)) = pointer.split_once("/*") else { return as_number(value.pointer(pointer)?) };
    let found = value.pointer(before)?;
    let elements: Vec<&serde_json::Value> = match found {
        serde_json::Value::Array(elements) => elements.iter().collect(),
        serde_json::Value::Object(fields) => fields.values().collect(),
        _ => return None,
    };
    // What an element does not have does not add to the sum.
    Some(elements.into_iter().filter_map(|element| in_json(element, after)).sum())
}

fn as_number(value: &serde_json::Value) -> Option<f64> {
    match value {
        serde_json::Value::Number(number) => number.as_f64(),
        serde_json::Value::String(text) => text.trim().parse().ok(),
        serde_json::Value::Bool(truth) => Some(f64::from(u8::from(*truth))),
        serde_json::Value::Array(elements) => Some(elements.len() as f64),
        serde_json::Value::Object(fields) => Some(fields.len() as f64),
        serde_json::Value::Null => None,
    }
}

/// The sum of a metric's samples (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).
fn in_metrics(text: &str, name: &str, labels: &BTreeMap<String, String>) -> Option<f64> {
    let mut sum = None;
    for line in text.lines().map(str::trim).filter(|l| !l.starts_with('#')) {
        let Some(rest) = line.strip_prefix(name) else { continue };
        let (given, rest) = match rest.strip_prefix('{') {
            Some(inner) => match split_labels(inner) {
                Some(split) => split,
                None => continue,
            },
            None if rest.starts_with([' ', '\t']) => (BTreeMap::new(), rest),
            None => continue,
        };
        let fits = labels.iter().all(|(label, value)| given.get(label) == Some(value));
        if let (true, Some(Ok(value))) = (fits, rest.split_whitespace().next().map(str::parse::<f64>)) {
            *sum.get_or_insert(0.0) += value;
        }
    }
    sum
}

/// Takes `a="x",b="y"} rest` apart.
fn split_labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let (mut labels, mut rest) = (BTreeMap::new(), text.trim_start());
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, after) = rest.split_once('=')?;
        let quoted = after.trim_start().strip_prefix('"')?;
        let (mut value, mut end, mut escaped) = (String::new(), None, false);
        for (at, letter) in quoted.char_indices() {
            match (escaped, letter) {
                (false, '\\') => escaped = true,
                (false, '"') => {
                    end = Some(at);
                    break;
                }
                (true, 'n') => {
                    value.push('\n');
                    escaped = false;
                }
                (_, letter) => {
                    value.push(letter);
                    escaped = false;
                }
            }
        }
        labels.insert(name.trim().to_owned(), value);
        rest = quoted[end? + 1..].trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_json() {
        let value = serde_json::json!({"coresused": 3, "apps": [{"cores": 2}, {"cores": 5}, {}], "by": {"a": {"n": "4"}, "b": {"n": 1}}});
        for (pointer, number) in [("/coresused", Some(3.0)), ("/apps", Some(3.0)), ("/apps/*/cores", Some(7.0)), ("/by/*/n", Some(5.0))] {
            assert_eq!(in_json(&value, pointer), number, "{pointer}");
        }
        assert_eq!(in_json(&value, "/nothing"), None);
        assert_eq!(in_json(&value, "/coresused/*/x"), None);
    }

    #[test]
    fn numbers_in_metrics() {
        let text = "# HELP lag of consumers\n# TYPE lag gauge\nlag{topic=\"a\",group=\"x\"} 3\nlag{topic=\"b\", group=\"x\",} 4.5 1700000000\n\
                    lag{topic=\"a}\\\"\",group=\"y\"} 100\nlag_total 7\nother 1\n";
        let with = |labels: &[(&str, &str)]| labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(in_metrics(text, "lag", &with(&[("group", "x")])), Some(7.5));
        assert_eq!(in_metrics(text, "lag", &with(&[("topic", "a}\"")])), Some(100.0));
        assert_eq!(in_metrics(text, "lag", &with(&[])), Some(107.5));
        assert_eq!(in_metrics(text, "lag_total", &with(&[])), Some(7.0));
        assert_eq!(in_metrics(text, "lag", &with(&[("group", "z")])), None);
    }
}
