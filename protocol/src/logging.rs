//! Logging of the head and the agent: lines on standard error, chosen by `CLOUDTIK_LOG`.

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What is logged: `info` unless `CLOUDTIK_LOG` says otherwise, such as `debug` or `info,h2=trace`.
pub fn start() {
    let wanted = std::env::var("CLOUDTIK_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let targets = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines).with(targets).init();
}
