use std::fmt;

use super::event::counted;
use super::{after_colon, list};
use crate::Timestamp;
use crate::outlook::{Blocked, LoadLevel, PolicySays, PolicyView, ShortageCause, Shortfall, SignalProblem, Source, Unmet, UnmetCause};

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Minimum { count } => write!(f, "minimum {count}"),
            Self::Requests { count, requests } => {
                let requests: Vec<String> = requests.iter().map(|of| format!("{} ({})", of.name, of.wants)).collect();
                write!(f, "asked for: {count} by {}", requests.join(", "))
            }
            Self::Policy { policy, count, says } => write!(f, "policy {policy}: {count} ({says})"),
            Self::Limits { count } => write!(f, "of that, the limits leave {count}"),
        }
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnHold { reason } => write!(f, "held on request{}", after_colon(reason)),
            Self::Paused { why } => write!(f, "paused: {why}"),
            Self::TypeMaximum { max, leaving: 0 } => write!(f, "its maximum of {max} is reached"),
            Self::TypeMaximum { max, leaving } => {
                write!(f, "its maximum of {max} is reached, {leaving} of them terminating or quarantined")
            }
            Self::ClusterMaximum { max } => write!(f, "the cluster's maximum of {max} workers is reached"),
            Self::Budget { budget, left, price } => write!(f, "the budget of {budget} leaves {left}; one costs {price}"),
            Self::Unavailable { offers } => {
                let offers: Vec<String> = offers.iter().map(|of| format!("{}: {}", of.offer, of.why)).collect();
                write!(f, "not available ({})", offers.join("; "))
            }
            Self::NotOffered => f.write_str("it is not available in any zone or market"),
            Self::ResourcesUnknown => f.write_str("its resources are not known until a first node has joined"),
        }
    }
}

impl fmt::Display for ShortageCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCapacity { error } => write!(f, "no capacity ({error})"),
            Self::Quota { error } => write!(f, "quota ({error})"),
            Self::Reclaimed { instance } => write!(f, "the provider took one away before it was ready (it reports: {instance})"),
        }
    }
}

impl fmt::Display for UnmetCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterMaximum { max } => write!(f, "the cluster's maximum of {max} workers is reached"),
            Self::BudgetLeaves { budget, left } => write!(f, "the budget of {budget} leaves {left}"),
            Self::Blocked { types, by } => write!(f, "{}: {by}", list(types)),
            Self::Quarantined { nodes } => {
                write!(f, "quarantined nodes take no work ({}; `cloudtik release` ends that)", list(nodes))
            }
            Self::MachinesInUse => f.write_str(
                "machines of other types would hold all of it, but machines in use are not exchanged: `cloudtik drain` those that can \
                 go, or revoke it and ask again",
            ),
            Self::NoTypeHoldsIt => f.write_str("no node type that is available can hold it"),
            Self::CannotHoldAll { types } => write!(f, "{} cannot hold all of it", list(types)),
            Self::NotOffered { resources } => write!(f, "no node type offers {}", resources.join(" or ")),
            Self::TriedLater { times } => {
                write!(f, "{times} times too few of its machines were available: it is retried later")
            }
            Self::NeedsWorkers { more, max, left } => {
                write!(f, "it takes {more} more workers, and the cluster's maximum of {max} leaves {left}")
            }
            Self::NeedsMoney { more, budget, left } => write!(f, "it takes {more} more, and the budget of {budget} leaves {left}"),
        }
    }
}

fn causes(of: &[UnmetCause]) -> String {
    of.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Unmet {
    /// What has no room, in words.
    pub fn what(&self) -> String {
        counted(&self.what)
    }

    /// Why, in words.
    pub fn why(&self) -> String {
        causes(&self.why)
    }
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { what, why } => write!(f, "{}: {}", counted(what), causes(why)),
            Self::AboveTypeMaximum { present, wanted, node_type, max } => {
                write!(f, "{present} of {wanted} running or starting: workers.{node_type}.max is {max}")
            }
            Self::Missing { present, wanted, why: None } => write!(f, "{present} of {wanted} running or starting"),
            Self::Missing { present, wanted, why: Some(why) } => write!(f, "{present} of {wanted} running or starting: {why}"),
        }
    }
}

fn time_of_day(at: Timestamp) -> String {
    let seconds = at.0 / 1_000 % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

impl fmt::Display for PolicySays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sees.fmt(f)?;
        if let Some(beyond) = &self.beyond_max {
            write!(f, "; it would ask for {}, and its max is {}", beyond.asked, beyond.max)?;
        }
        if let Some(waits) = &self.waits {
            let why = if waits.flaps { "it flaps, so its" } else { "it changed direction just now, so its" };
            write!(f, "; {why} {} waits until {}", waits.count, time_of_day(waits.until))?;
        }
        Ok(())
    }
}

impl fmt::Display for PolicyView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownTimeZone { time_zone } => write!(f, "the time zone {time_zone} is not known"),
            Self::ScheduleOn { hours } => hours.fmt(f),
            Self::ScheduleOff { hours } => write!(f, "off; on {hours}"),
            Self::LoadUnknown { metric, window_s } => write!(f, "no {metric} load is known for {window_s} s yet"),
            Self::Load { metric, percent, nodes, window_s, level } => {
                write!(f, "{metric} at {percent} % of {nodes} over {window_s} s{level}")
            }
            Self::SignalUnknown { signal, cause } => write!(f, "{signal} is not known: {cause}"),
            Self::Signal { signal, value, at_work } => {
                write!(f, "{signal} is {value}")?;
                match at_work {
                    Some(nodes) => write!(f, ", beside what {nodes} that are at work have"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl fmt::Display for LoadLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Saturated => f.write_str(": saturated"),
            Self::Above { percent } => write!(f, ", above {percent} %"),
            Self::Below { percent } => write!(f, ", below {percent} %"),
            Self::BelowSinceSomeLeft { percent } => write!(f, ", below {percent} %, some of which left just now"),
            Self::Between { low, high } => write!(f, ", between {low} % and {high} %"),
        }
    }
}

impl fmt::Display for SignalProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { node } => write!(f, "the agent's log says why (`cloudtik logs CLUSTER --node {node}`)"),
            Self::NoServiceReady { runtime } => write!(f, "no service of {runtime} is ready"),
        }
    }
}
