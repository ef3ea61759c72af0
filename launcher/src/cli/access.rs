//! The arguments of `access`.

use std::time::Duration;

use clap::Subcommand;
use cloudtik_model::access::Role;
use cloudtik_model::{AdministratorName, ClusterName};

use super::{NamedCluster, values};

const LIST: &str = "\
Examples:
  # List who has access
  cloudtik access list demo

  # Print the names of those who have access now
  cloudtik access list demo -o json \\
    | jq -r '.[] | select(.state == \"active\").name'";

const GRANT: &str = "\
The invitation is good once. Whoever has it can accept it: send it over a
channel that others cannot read.

Examples:
  # Let a person operate a cluster for 30 days
  cloudtik access grant demo ada --role operator

  # Let a person look at it for a working day
  cloudtik access grant demo bob --role viewer --expires 8h";

const REVOKE: &str = "\
The head refuses the person from then on, and ends what they follow.

Examples:
  # End the access of a person, or withdraw an invitation
  cloudtik access revoke demo ada";

const ACCEPT: &str = "\
The key is made here and never leaves this machine. Afterwards commands such as
\"cloudtik status NAME\" reach the cluster.

Examples:
  # Accept an invitation
  cloudtik access accept cloudtik://demo@10.0.0.5:7070/5f…/9c…

  # Call the cluster by another name here
  cloudtik access accept cloudtik://demo@10.0.0.5:7070/5f…/9c… --as prod

  # Keep the invitation out of the list of processes
  cloudtik access accept - < invitation.txt";

#[derive(Subcommand)]
pub enum Access {
    /// List who has access to a cluster, in which role, and until when
    #[command(after_help = LIST)]
    List {
        #[command(flatten)]
        cluster: NamedCluster,
    },
    /// Invite a person to a cluster; print the command that they run
    #[command(after_help = GRANT)]
    Grant {
        #[command(flatten)]
        cluster: NamedCluster,
        /// Name of the person, such as `ada` or `ada@example.org`
        name: AdministratorName,
        /// What the person may do: viewer, operator or admin
        #[arg(long, value_name = "ROLE")]
        role: Role,
        /// How long the access lasts, such as 8h or 30d
        #[arg(long, default_value = "30d", value_name = "TIME", value_parser = values::span)]
        expires: Duration,
        /// How long the invitation can be accepted, such as 10m; up to 7d
        #[arg(long, default_value = "1h", value_name = "TIME", value_parser = values::span)]
        accept_within: Duration,
    },
    /// End the access of a person at once, or withdraw an invitation
    #[command(after_help = REVOKE)]
    Revoke {
        #[command(flatten)]
        cluster: NamedCluster,
        /// Name of the person, as shown by `cloudtik access list`
        name: AdministratorName,
    },
    /// Accept an invitation to a cluster
    #[command(after_help = ACCEPT)]
    Accept {
        /// Invitation, as `cloudtik access grant` printed it; `-` is standard
        /// input
        invitation: String,
        /// Name of the cluster in your commands; its own name by default
        #[arg(long = "as", value_name = "NAME")]
        local_name: Option<ClusterName>,
        /// Address of the head as it is reached from here, if it is another
        /// one than in the invitation
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
    },
}
