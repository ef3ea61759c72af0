//! The role that each request needs, in one table.

use cloudtik_model::access::Role;
use cloudtik_protocol::AdminMethod;
use cloudtik_protocol::wire::open_request::What;

/// Methods whose first word is a command with commands of its own.
const GROUPS: [&str; 3] = ["Access", "Jobs", "Rollout"];

/// The least role for a method. Another method of the contract does not compile without a line here.
pub fn of_method(method: AdminMethod) -> Role {
    use AdminMethod as M;
    match method {
        M::Status | M::Watch | M::Events | M::Explain | M::Outlook | M::RolloutStatus => Role::Viewer,
        M::JobsList | M::JobsStatus | M::JobsWatch => Role::Viewer,
        M::JobsSubmit | M::JobsCancel | M::JobsDelete => Role::Operator,
        // What is opened has a role of its own: see `of_session`.
        M::Session => Role::Viewer,
        M::Scale | M::Revoke | M::Hold | M::Resume | M::RolloutResume => Role::Operator,
        M::QuarantineNode | M::ReleaseNode | M::KillNode | M::DrainNode => Role::Operator,
        // An undo applies another description.
        M::Apply | M::RolloutUndo | M::Shutdown => Role::Admin,
        // The whole description is in it.
        M::Dump => Role::Admin,
        M::AccessList | M::AccessGrant | M::AccessRevoke => Role::Admin,
    }
}

/// What a session is opened for, and the least role for it. Files are copied by commands.
pub fn of_session(what: &What) -> (&'static str, Role) {
    match what {
        What::Logs(_) => ("logs", Role::Viewer),
        What::Execute(_) => ("exec", Role::Operator),
    }
}

/// What a person calls a method: `KillNode` is `kill-node`.
pub fn words(method: AdminMethod) -> String {
    let mut words = String::new();
    for (i, letter) in method.name().chars().enumerate() {
        if letter.is_ascii_uppercase() && i > 0 {
            words.push(if GROUPS.iter().any(|group| method.name().starts_with(group)) { ' ' } else { '-' });
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roles_are_as_documented() {
        let of = |role| {
            let methods = AdminMethod::ALL.iter().filter(|method| of_method(**method) == role);
            methods.map(|method| words(*method)).collect::<Vec<_>>()
        };
        assert_eq!(
            of(Role::Viewer),
            ["status", "watch", "events", "explain", "outlook", "rollout status", "session", "jobs list", "jobs status", "jobs watch"]
        );
        assert_eq!(
            of(Role::Operator),
            [
                "scale",
                "revoke",
                "hold",
                "resume",
                "rollout resume",
                "quarantine-node",
                "release-node",
                "kill-node",
                "drain-node",
                "jobs submit",
                "jobs cancel",
                "jobs delete"
            ]
        );
        assert_eq!(of(Role::Admin), ["apply", "rollout undo", "shutdown", "dump", "access list", "access grant", "access revoke"]);
    }
}
