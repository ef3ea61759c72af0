//! The provider of simulations: it has everything that descriptions may ask for, and makes no machines.

use cloudtik_config::reader::{Problems, Table};
use cloudtik_model::{Bytes, Resources};
use serde_json::Value;

use crate::kind::{Kind, Machines, Offers};

/// What a machine has whose type does not say.
const USUAL: Resources = Resources { cpus: 4, memory: Bytes(16 << 30), gpus: 0 };

#[derive(Debug)]
pub struct Simulated;

impl Kind for Simulated {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn summary(&self) -> &'static str {
        "no machines: for `cloudtik simulate` only"
    }

    fn offers(&self) -> Offers {
        Offers { zones: true, spot: true }
    }

    fn read(&self, _: &mut Table<'_>, _: &Problems) -> Value {
        Value::Null
    }

    fn default_resources(&self) -> Option<Resources> {
        Some(USUAL)
    }

    fn machines(&self) -> Option<&dyn Machines> {
        None
    }
}
