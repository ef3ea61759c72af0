//! Programs on nodes for people: commands, logs and jobs.

use cloudtik_brain::Input;
use cloudtik_model::event::What as Happened;
use cloudtik_model::report::ServiceState;
use cloudtik_model::{NodeId, RuntimeName, ServiceKey};
use cloudtik_protocol::logging::chain;
use cloudtik_protocol::wire::open_request::What;
use cloudtik_protocol::wire::submit_option::Content;
use cloudtik_protocol::{MAX_JOB, pki, wire};
use cloudtik_runtimes::planner::JobRequest;
use tonic::Status;

use super::{Head, parse, stopped};
use crate::sessions::Program;
use crate::status;

/// Takes `$1` files from the input, of which pairs of size and name follow, then becomes the program that follows these.
const TAKE_FILES: &str = r#"
left=$1; shift
while [ "$left" -gt 0 ]; do
    (umask 077; head -c "$1" > "$2") || exit 1
    [ "$(wc -c < "$2")" -eq "$1" ] || { echo "the job's file did not arrive whole" >&2; exit 1; }
    shift 2
    left=$((left - 1))
done
exec "$@"
"#;

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
                let path = if logs.service.is_empty() {
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
            Some(What::Submit(submit)) => self.submit(submit).await,
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

    /// Starts a job as one program, which first takes the job's files from its input: whatever ends it, the agent removes the
    /// files.
    async fn submit(&self, submit: wire::Submit) -> Result<Program, Status> {
        let size = submit.size.ok_or_else(|| Status::failed_precondition("this cloudtik is older than the head; upgrade it"))?;
        let name = if is_name(&submit.file_name) { submit.file_name } else { "job".to_owned() };
        let mut files = vec![wire::SubmitFile { name: name.clone(), size }];
        files.extend(submit.options.iter().filter_map(file_of).cloned());
        if files.iter().fold(0u64, |sum, file| sum.saturating_add(file.size)) > MAX_JOB {
            return Err(Status::resource_exhausted(format!("a job's files may have at most {} MiB together", MAX_JOB >> 20)));
        }
        let runtime = if submit.runtime.is_empty() { None } else { Some(parse::<RuntimeName>("runtime", &submit.runtime)?) };
        let (_, _, planner) = self.revisions.latest().ok_or_else(|| Status::failed_precondition("the cluster runs no runtime yet"))?;
        let head = self.brain.query(|brain| brain.node(&NodeId::head())).await.map_err(stopped)?;
        let head = head.ok_or_else(|| Status::unavailable("the head's own node is not there yet"))?;
        let context = status::context(&head).ok_or_else(|| Status::unavailable("the head's own agent has not connected yet"))?;
        let directory = format!("jobs/{}", pki::hex(&pki::random::<6>()));
        let available = |wanted: &_| self.artifacts.availability(wanted);
        let workers = self.board.nodes(status::worker).await.map_err(stopped)?;
        let in_directory = |name: &str| format!("{}/{directory}/{name}", context.home);
        let request = JobRequest {
            runtime,
            file: in_directory(&name),
            arguments: submit.arguments,
            options: read_options(&submit.options, &name, in_directory)?,
        };
        let job = planner.job(&request, &self.view, &context, &workers, &available);
        let job = job.map_err(|e| Status::failed_precondition(chain(&e)))?;
        if let Ok(Some(misfit)) = planner.misfit(&job.runtime, &self.view, &context, &workers) {
            return Err(Status::failed_precondition(misfit.to_string()));
        }
        match head.services.get(&job.needs) {
            Some(service) if service.state == ServiceState::Ready => {}
            Some(service) => {
                return Err(Status::unavailable(format!("the job cannot start yet: {}", service.sentence())));
            }
            None => return Err(Status::unavailable(format!("{} does not run yet", job.needs))),
        }
        self.note(NodeId::head(), Happened::Submit { job: name.clone() }).await;
        let mut command = ["sh", "-c", TAKE_FILES, "sh"].map(str::to_owned).to_vec();
        command.push(files.len().to_string());
        command.extend(files.iter().flat_map(|file| [file.size.to_string(), file.name.clone()]));
        command.extend(job.command);
        let execute = wire::Execute {
            command,
            environment: job.environment.into_iter().collect(),
            directory,
            remove: files.into_iter().map(|file| file.name).collect(),
            ..Default::default()
        };
        self.open_program(&NodeId::head(), execute).await
    }
}

/// Whether a text names a file in a directory, and nothing else.
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains('/') && text != "." && text != ".."
}

/// The file that an option brings along.
fn file_of(option: &wire::SubmitOption) -> Option<&wire::SubmitFile> {
    match &option.content {
        Some(Content::File(file)) => Some(file),
        Some(Content::Value(_)) | None => None,
    }
}

/// Options by name and value; a file's is where it will lie.
fn read_options(options: &[wire::SubmitOption], job: &str, in_directory: impl Fn(&str) -> String) -> Result<Vec<(String, String)>, Status> {
    let mut names = std::collections::BTreeSet::from([job]);
    let mut read = Vec::new();
    for option in options {
        let value = match &option.content {
            Some(Content::Value(value)) => value.clone(),
            Some(Content::File(file)) if !is_name(&file.name) => {
                return Err(Status::invalid_argument(format!("{:?} is not the name of a file", file.name)));
            }
            Some(Content::File(file)) if !names.insert(&file.name) => {
                return Err(Status::invalid_argument(format!("two files of the job are named {}; rename one", file.name)));
            }
            Some(Content::File(file)) => in_directory(&file.name),
            None => {
                return Err(Status::invalid_argument(format!("the option {} has no value; upgrade this cloudtik", option.name)));
            }
        };
        read.push((option.name.clone(), value));
    }
    Ok(read)
}
