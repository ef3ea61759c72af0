//! Programs on nodes for people: commands and logs.

use cloudtik_brain::Input;
use cloudtik_model::event::What as Happened;
use cloudtik_model::job::{JobStream, layout};
use cloudtik_model::{NodeId, ServiceKey};
use cloudtik_protocol::wire;
use cloudtik_protocol::wire::open_request::What;
use tonic::Status;

use super::{Head, parse, stopped};
use crate::sessions::Program;

impl Head {
    /// Has a program run on a node, over the link that the brain accepted.
    async fn open_program(&self, node: &NodeId, execute: wire::Execute) -> Result<Program, Status> {
        self.open_session(node, wire::OpenSession { execute: Some(execute), log: None }).await
    }

    async fn open_session(&self, node: &NodeId, what: wire::OpenSession) -> Result<Program, Status> {
        let wanted = node.clone();
        let view = self.brain.query(move |brain| brain.node(&wanted)).await.map_err(stopped)?;
        let view = view.ok_or_else(|| Status::not_found(format!("there is no node {node}")))?;
        let session = view.link.ok_or_else(|| Status::unavailable(format!("{node} is not connected")))?;
        self.sessions.open(session, node, what)
    }

    /// Starts what a client asked for.
    pub(super) async fn open(&self, request: wire::OpenRequest) -> Result<Program, Status> {
        let node = if request.node.is_empty() { NodeId::head() } else { parse("node", &request.node)? };
        match request.what {
            Some(What::Execute(execute)) => {
                // Not the arguments: they may hold secrets.
                let program_name = execute.command.first().cloned().unwrap_or_default();
                let program = self.open_program(&node, execute).await?;
                self.note(node, Happened::Exec { program: program_name }).await;
                Ok(program)
            }
            Some(What::Logs(logs)) => {
                let home = self.home_of(&node).await?;
                let path = if !logs.job.is_empty() {
                    let stream = match logs.stream() {
                        wire::OutputStream::Stdout => JobStream::Stdout,
                        wire::OutputStream::Stderr => JobStream::Stderr,
                    };
                    layout::log(self.job(&wire::JobRequest { job: logs.job }).await?.id, stream)
                } else if logs.service.is_empty() {
                    "agent.log".to_owned()
                } else {
                    let key: ServiceKey = parse("service", &logs.service)?;
                    format!("services/{}/{}/log", key.runtime, key.service)
                };
                // For agents of an earlier version, which read no logs.
                let mut command = vec!["tail".to_owned(), "-n".to_owned(), logs.lines.to_string()];
                command.extend(logs.follow.then(|| "-F".to_owned()));
                command.push(format!("{home}/{path}"));
                let execute = wire::Execute { command, ..Default::default() };
                let log = wire::ReadLog { path, lines: logs.lines, follow: logs.follow, after: logs.after };
                self.open_session(&node, wire::OpenSession { execute: Some(execute), log: Some(log) }).await
            }
            None => Err(Status::invalid_argument("this head does not know what is to be opened; upgrade it")),
        }
    }

    /// Leaves a line of what somebody did in the log.
    async fn note(&self, node: NodeId, what: Happened) {
        self.brain.send(Input::Noted { actor: self.actor.clone(), node, what }).await;
    }

    async fn home_of(&self, node: &NodeId) -> Result<String, Status> {
        let wanted = node.clone();
        let found = self.brain.query(move |brain| brain.node(&wanted)).await.map_err(stopped)?;
        let view = found.ok_or_else(|| Status::not_found(format!("there is no node {node}")))?;
        view.facts.map(|f| f.home).ok_or_else(|| Status::unavailable(format!("{node} has not connected yet")))
    }
}
