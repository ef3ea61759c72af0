//! The providers that the programs have: the only place that names them all.

use std::sync::LazyLock;

use cloudtik_providers::{Registry, external, local, simulated};

static REGISTRY: LazyLock<Registry> =
    LazyLock::new(|| Registry::new(vec![&local::Local, &cloudtik_virtual::Virtual, &external::External, &simulated::Simulated]));

/// The providers by their kinds.
pub fn registry() -> &'static Registry {
    &REGISTRY
}
