//! Parts of a manifest, with their templates filled in, as parts of a goal.

use std::time::Duration;

use cloudtik_config::reader::Scalar;
use cloudtik_model::{Bytes, ServiceKey, goal};

use super::Error;
use crate::manifest::{Check, DrainBy, Gauge, Limits, Manifest, Probe, Read, Service, parse_cpus};

pub(super) fn limits(limits: &Limits, service: &ServiceKey, fill: Fill<'_>) -> Result<goal::Limits, Error> {
    let amount = |text: &Option<String>, parse: fn(&str) -> Option<u64>| {
        let Some(text) = text.as_ref().map(|text| fill("a limit", text)).transpose()? else { return Ok(None) };
        parse(&text).map(Some).ok_or_else(|| Error::Limit { service: service.clone(), text })
    };
    Ok(goal::Limits {
        memory: amount(&limits.memory, |text| text.parse::<Bytes>().ok().map(|b| b.0).filter(|b| *b > 0))?,
        cpu_millis: amount(&limits.cpus, parse_cpus)?,
    })
}

/// Fills a template in; the first text says what it is part of.
pub(super) type Fill<'a> = &'a dyn Fn(&'static str, &str) -> Result<String, Error>;

/// The numbers that a service gives: its own work, and the runtime's signals that come from it.
pub(super) fn gauges(manifest: &Manifest, service: &Service, fill: Fill<'_>) -> Result<Vec<goal::Gauge>, Error> {
    let work = service.work.iter().map(|gauge| (goal::Gauge::WORK, gauge));
    let signals = manifest.signals.iter().filter(|(_, s)| s.service == service.name).map(|(name, s)| (name.as_str(), &s.gauge));
    work.chain(signals).map(|(name, gauge)| render_gauge(name, gauge, fill)).collect()
}

fn render_gauge(name: &str, gauge: &Gauge, fill: Fill<'_>) -> Result<goal::Gauge, Error> {
    let read = match &gauge.read {
        Read::Json { pointer } => Read::Json { pointer: pointer.clone() },
        Read::Metric { name, labels } => {
            let labels = labels.iter().map(|(label, value)| Ok((label.clone(), fill("a label", value)?)));
            Read::Metric { name: name.clone(), labels: labels.collect::<Result<_, Error>>()? }
        }
    };
    Ok(goal::Gauge {
        name: name.to_owned(),
        url: fill("a number's address", &gauge.url)?,
        read,
        interval_ms: gauge.interval.as_millis() as u64,
        timeout_ms: gauge.timeout.as_millis() as u64,
    })
}

pub(super) fn render_drain(by: &DrainBy, timeout: Duration, fill: Fill<'_>) -> Result<goal::Drain, Error> {
    let by = match by {
        DrainBy::Signal(number) => DrainBy::Signal(*number),
        DrainBy::Command(command) => DrainBy::Command(command.iter().map(|t| fill("a drain", t)).collect::<Result<_, _>>()?),
        DrainBy::Request { method, url, body } => {
            DrainBy::Request { method: method.clone(), url: fill("a drain", url)?, body: fill("a drain", body)? }
        }
    };
    Ok(goal::Drain { by, timeout_ms: timeout.as_millis() as u64 })
}

pub(super) fn render_probe(probe: &Probe, fill: Fill<'_>) -> Result<goal::Probe, Error> {
    let check = match &probe.check {
        Check::Tcp { address } => goal::Check::Tcp { address: fill("a probe", address)? },
        Check::Command { command } => {
            goal::Check::Command { command: command.iter().map(|t| fill("a probe", t)).collect::<Result<_, _>>()? }
        }
        Check::Http { url, status, pointer, equals } => goal::Check::Http {
            url: fill("a probe", url)?,
            status: *status,
            pointer: pointer.clone(),
            equals: match equals {
                None => None,
                Some(Scalar::Text(text)) => Some(fill("a probe", text)?.into()),
                Some(Scalar::Integer(number)) => Some((*number).into()),
                Some(Scalar::Float(number)) => Some((*number).into()),
                Some(Scalar::Boolean(truth)) => Some((*truth).into()),
            },
        },
    };
    Ok(goal::Probe {
        check,
        interval_ms: probe.interval.as_millis() as u64,
        timeout_ms: probe.timeout.as_millis() as u64,
        failures: probe.failures,
        waiting: probe.waiting.as_ref().map(|text| fill("a probe", text)).transpose()?.unwrap_or_default(),
    })
}
