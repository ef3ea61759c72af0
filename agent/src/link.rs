//! The link to the head: one stream for every topic, opened by the agent, opened again when it breaks.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::job::{JobGoals, JobReport};
use cloudtik_model::report::Facts;
use cloudtik_model::{Epoch, goal};
use cloudtik_protocol::clock::TOLERATED;
use cloudtik_protocol::convert::{memory_kills_to_wire, proof_from_wire, proof_to_wire, report_to_wire};
use cloudtik_protocol::wire::agent_frame::Topic as AgentTopic;
use cloudtik_protocol::wire::bus_client::BusClient;
use cloudtik_protocol::wire::head_frame::Topic as HeadTopic;
use cloudtik_protocol::{MAX_FRAME, PROTOCOL_VERSION, pki, wire};
use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::converge::Converger;
use crate::dialer::Dialer;
use crate::epoch::Epochs;
use crate::exec;
use crate::health::Health;
use crate::home::Home;
use crate::identity::NodeIdentity;
use crate::jobs::Jobs;
use crate::memory::PendingKills;
use crate::reports::{Reports, Services};

/// The first pause before another attempt; it grows to [`LONGEST_PAUSE`], each time with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// How long a link may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(200);
/// Frames that wait to be sent. When the head reads nothing for that long, reports wait; the newest of each is sent.
const OUTGOING: usize = 32;
/// Bytes of reports of jobs in a frame.
const MAX_JOB_REPORTS: usize = 256 << 10;
/// The longest and the shortest time between two looks at whether the certificate should be renewed.
const RENEWAL_CHECK: (Duration, Duration) = (Duration::from_secs(30), Duration::from_millis(500));

/// What the link carries between.
pub struct Link {
    pub home: Home,
    pub bootstrap: Bootstrap,
    pub facts: Facts,
    pub identity: NodeIdentity,
    pub converger: Converger,
    pub jobs: Jobs,
    pub reports: Reports,
    pub pending_kills: PendingKills,
    pub health: Health,
    pub epochs: Epochs,
    pub dialer: Dialer,
    /// Whether there is a head to dial.
    pub linked: watch::Sender<bool>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl Link {
    /// Keeps the link up until the agent stops.
    pub async fn run(self) {
        let mut pause = FIRST_PAUSE;
        let mut last_error = String::new();
        while !self.stop.is_cancelled() {
            // A link that stands says goodbye by itself when the agent stops; one that does not is not waited for.
            let result = tokio::select! {
                biased;
                result = self.connect_once() => result,
                () = async { self.stop.cancelled().await; sleep(GOODBYE).await } => break,
            };
            self.linked.send_replace(false);
            // A head that was there and went away is probably back in a moment; one that never answered may be long gone.
            let was_linked = self.health.linked(false);
            if let Err(error) = result {
                let text = format!("{error:#}");
                // The same again and again is one line.
                if text != last_error {
                    tracing::warn!("cannot connect to the head: {text}");
                    last_error = text;
                }
            }
            if was_linked {
                pause = FIRST_PAUSE;
                last_error.clear();
            }
            let jittered = pause.mul_f64(0.5 + f64::from(pki::random::<1>()[0]) / 255.0);
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = sleep(jittered) => {}
            }
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }

    async fn connect_once(&self) -> anyhow::Result<()> {
        let clock_before = self.identity.clock().offset();
        if !self.identity.is_valid() {
            self.identity.join().await.context("joining")?;
            tracing::info!("joined the cluster");
        }
        let channel = self.dialer.dial_link().await?;
        let (outgoing, frames) = mpsc::channel(OUTGOING);
        let mut client = BusClient::new(channel).max_decoding_message_size(MAX_FRAME);
        let facts = Facts { clock_offset_s: self.identity.clock().offset() / 1_000, ..self.facts.clone() };
        let (epoch, proof) = self.epochs.seen();
        let hello = wire::Hello {
            protocol_version: PROTOCOL_VERSION,
            node: self.bootstrap.node.to_string(),
            generation: self.bootstrap.generation.0,
            epoch: epoch.0,
            epoch_proof: Some(proof_to_wire(&proof)),
            goal_version: self.converger.version(),
            facts: serde_json::to_vec(&facts)?.into(),
        };
        send(&outgoing, AgentTopic::Hello(hello)).await?;
        let mut reports = self.reports.subscribe();
        let mut sent = reports.borrow_and_update().clone();
        let mut jobs = self.reports.subscribe_jobs();
        let mut sent_jobs = jobs.borrow_and_update().clone();
        let mut of_jobs = job_frames(sent_jobs.values()).into_iter();
        let all = sent.values().map(report_to_wire).collect();
        send(&outgoing, AgentTopic::Report(wire::Report { complete: true, services: all, jobs: of_jobs.next().unwrap_or_default() }))
            .await?;
        let incoming =
            client.connect(ReceiverStream::new(frames)).await.map_err(|s| anyhow::anyhow!("the head refuses: {}", s.message()))?;
        let mut incoming = pin!(incoming.into_inner());
        self.linked.send_replace(true);

        let mut heartbeat_every = Duration::from_millis(self.bootstrap.heartbeat_ms);
        let mut heartbeats = ticker(heartbeat_every);
        let mut renewal = pin!(sleep(self.until_renewal()));
        let (mut sequence, mut last_load) = (0, None);
        // Beside the loop: a disk that is slow to take a goal must not hold up heartbeats.
        let (goals, documents) = watch::channel(None);
        let mut taking = pin!(self.take_goals(documents, outgoing.clone()));
        let (job_goals, documents) = watch::channel(None);
        let mut taking_jobs = pin!(self.take_all_jobs(documents));
        for jobs in of_jobs {
            send(&outgoing, AgentTopic::Report(wire::Report { jobs, ..Default::default() })).await?;
        }
        loop {
            tokio::select! {
                () = taking.as_mut() => bail!("the stream is closed"),
                () = taking_jobs.as_mut() => bail!("the stream is closed"),
                () = self.stop.cancelled() => {
                    let _ = send(&outgoing, AgentTopic::Goodbye(wire::Goodbye { reason: "it is stopping".to_owned() })).await;
                    // Give the frame a moment to leave.
                    sleep(Duration::from_millis(20)).await;
                    return Ok(());
                }
                _ = heartbeats.tick() => {
                    sequence += 1;
                    let load = self.health.load_if_changed(&self.reports, &mut last_load);
                    send(&outgoing, AgentTopic::Heartbeat(wire::Heartbeat { sequence, load })).await?;
                    for kills in self.pending_kills.take() {
                        send(&outgoing, AgentTopic::MemoryKills(memory_kills_to_wire(&kills))).await?;
                    }
                }
                Ok(()) = reports.changed() => {
                    let latest = reports.borrow_and_update().clone();
                    let services = changed(&sent, &latest);
                    sent = latest;
                    send(&outgoing, AgentTopic::Report(wire::Report { services, ..Default::default() })).await?;
                }
                Ok(()) = jobs.changed() => {
                    let latest = jobs.borrow_and_update().clone();
                    let changed = latest.values().filter(|report| sent_jobs.get(&report.id) != Some(*report));
                    let frames = job_frames(changed);
                    sent_jobs = latest;
                    for jobs in frames {
                        send(&outgoing, AgentTopic::Report(wire::Report { jobs, ..Default::default() })).await?;
                    }
                }
                () = renewal.as_mut() => {
                    if self.identity.remaining().is_some_and(|(renew, _)| renew <= 0) {
                        let request = wire::IdentityRequest { certificate_request: self.identity.request()?.into() };
                        send(&outgoing, AgentTopic::Identity(request)).await?;
                    }
                    renewal.set(sleep(self.until_renewal()));
                }
                frame = incoming.message() => {
                    let Some(frame) = frame.map_err(|s| anyhow::anyhow!("lost connection to the head: {}", s.message()))? else {
                        bail!("the head closed the connection");
                    };
                    let proof = match &frame.topic {
                        Some(HeadTopic::Welcome(welcome)) => welcome.epoch_proof.clone().map(proof_from_wire),
                        _ => None,
                    };
                    self.epochs.check(Epoch(frame.epoch), proof.as_ref())?;
                    match frame.topic {
                        Some(HeadTopic::Welcome(welcome)) => {
                            if welcome.protocol_version != PROTOCOL_VERSION {
                                bail!("the head speaks protocol {}, this agent {PROTOCOL_VERSION}", welcome.protocol_version);
                            }
                            // An older head does not say.
                            if welcome.time_ms > 0 {
                                self.identity.take_time(welcome.time_ms);
                            }
                            let offset = self.identity.clock().offset();
                            if (offset - clock_before).abs() > TOLERATED {
                                tracing::warn!("this machine's clock is {} s behind the head's (negative: ahead)", offset / 1_000);
                            }
                            self.health.linked(true);
                            tracing::info!(head = welcome.head_version, epoch = frame.epoch, "linked");
                            let every = Duration::from_millis(u64::from(welcome.heartbeat_ms));
                            if !every.is_zero() && every != heartbeat_every {
                                heartbeat_every = every;
                                heartbeats = ticker(every);
                            }
                        }
                        Some(HeadTopic::Goal(document)) => {
                            goals.send_replace(Some(document));
                        }
                        Some(HeadTopic::Jobs(document)) => {
                            job_goals.send_replace(Some(document));
                        }
                        Some(HeadTopic::Command(command)) => self.handle_command(command, &outgoing),
                        Some(HeadTopic::Identity(reply)) => {
                            if reply.refusal.is_empty() {
                                self.identity.take(reply.chain.into_iter().map(|c| CertificateDer::from(c.to_vec())).collect())?;
                                tracing::info!("the certificate is renewed");
                            } else {
                                tracing::error!("the head refuses to renew the certificate: {}", reply.refusal);
                            }
                        }
                        Some(HeadTopic::Goodbye(goodbye)) => bail!("the head closed the connection: {}", goodbye.reason),
                        // A newer head's topic.
                        None => {}
                    }
                }
            }
        }
    }

    fn until_renewal(&self) -> Duration {
        let (longest, shortest) = RENEWAL_CHECK;
        let due = self.identity.remaining().map_or(0, |(renew, _)| renew.max(0));
        Duration::from_millis(due as u64).clamp(shortest, longest)
    }

    /// Takes goals one after the other, of several that wait only the last.
    async fn take_goals(&self, mut documents: watch::Receiver<Option<wire::GoalDocument>>, outgoing: mpsc::Sender<wire::AgentFrame>) {
        while let Some(document) = next(&mut documents).await {
            let refusal = self.take_goal(&document).await.err().unwrap_or_default();
            let ack = wire::GoalAck { version: document.version, refusal };
            if send(&outgoing, AgentTopic::GoalAck(ack)).await.is_err() {
                return;
            }
        }
    }

    async fn take_goal(&self, document: &wire::GoalDocument) -> Result<(), String> {
        let goal: goal::Goal = serde_json::from_slice(&document.document).map_err(|e| format!("malformed goal: {e}"))?;
        if goal.node != self.bootstrap.node || goal.generation != self.bootstrap.generation {
            return Err(format!("the goal is for {}, generation {}", goal.node, goal.generation));
        }
        self.converger.take(goal).await
    }

    /// Takes documents of jobs one after the other, of several that wait only the last.
    async fn take_all_jobs(&self, mut documents: watch::Receiver<Option<wire::JobsDocument>>) {
        while let Some(document) = next(&mut documents).await {
            match serde_json::from_slice::<JobGoals>(&document.document) {
                Ok(goals) if goals.node == self.bootstrap.node && goals.generation == self.bootstrap.generation => {
                    self.jobs.take(goals).await
                }
                Ok(goals) => tracing::error!("a document of jobs is refused: it is for {}, generation {}", goals.node, goals.generation),
                Err(error) => tracing::error!("a document of jobs is refused: it is malformed: {error}"),
            }
        }
    }

    fn handle_command(&self, command: wire::Command, outgoing: &mpsc::Sender<wire::AgentFrame>) {
        let Some(wire::command::Kind::OpenSession(wire::OpenSession { execute: Some(execute), log })) = command.kind else {
            let result = wire::CommandResult { id: command.id, error: "this agent does not know the command".to_owned() };
            let frame = wire::AgentFrame { topic: Some(AgentTopic::Result(result)) };
            let _ = outgoing.try_send(frame);
            return;
        };
        let (home, dialer, stop, outgoing) = (self.home.clone(), self.dialer.clone(), self.stop.clone(), outgoing.clone());
        let tasks = self.tasks.clone();
        self.tasks.spawn(async move {
            let serving = async {
                match log {
                    Some(log) => exec::serve_log(&home, &dialer, command.id.clone(), log).await,
                    None => exec::serve(&home, &dialer, &tasks, command.id.clone(), execute).await,
                }
            };
            tokio::select! {
                result = serving => {
                    if let Err(error) = result {
                        tracing::warn!("session: {error:#}");
                        // Whoever asked need not wait for an end that never opened.
                        let result = wire::CommandResult { id: command.id, error: format!("{error:#}") };
                        let _ = outgoing.try_send(wire::AgentFrame { topic: Some(AgentTopic::Result(result)) });
                    }
                }
                () = stop.cancelled() => {}
            }
        });
    }
}

fn ticker(every: Duration) -> tokio::time::Interval {
    let mut ticker = interval_at(Instant::now() + every, every);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

/// The last document that has come and was not taken yet; waits for one.
async fn next<D: Clone>(documents: &mut watch::Receiver<Option<D>>) -> Option<D> {
    documents.changed().await.ok()?;
    documents.borrow_and_update().clone()
}

fn changed(sent: &Services, latest: &Services) -> Vec<wire::ServiceReport> {
    latest.iter().filter(|(key, report)| sent.get(*key) != Some(*report)).map(|(_, report)| report_to_wire(report)).collect()
}

/// Reports of jobs for as many frames as they need.
fn job_frames<'a>(reports: impl Iterator<Item = &'a JobReport>) -> Vec<Vec<Bytes>> {
    let (mut frames, mut room): (Vec<Vec<Bytes>>, usize) = (Vec::new(), 0);
    for report in reports {
        let text = Bytes::from(serde_json::to_vec(report).expect("numbers and texts become JSON"));
        let size = text.len();
        match frames.last_mut() {
            Some(frame) if size <= room => frame.push(text),
            Some(_) | None => {
                frames.push(vec![text]);
                room = MAX_JOB_REPORTS;
            }
        }
        room = room.saturating_sub(size);
    }
    frames
}

async fn send(outgoing: &mpsc::Sender<wire::AgentFrame>, topic: AgentTopic) -> anyhow::Result<()> {
    outgoing.send(wire::AgentFrame { topic: Some(topic) }).await.map_err(|_| anyhow::anyhow!("the stream is closed"))
}

#[cfg(test)]
mod tests {
    use cloudtik_model::JobId;
    use cloudtik_model::job::{JobEnd, JobReportState};

    use super::*;

    #[test]
    fn reports_of_jobs_are_split_into_frames_with_each_of_them_once() {
        let report = |id: u64, length: usize| {
            let end = JobEnd::NotStarted { why: "x".repeat(length) };
            JobReport { id: JobId(id), attempt: 1, state: JobReportState::Unstarted { end } }
        };
        let none: [JobReport; 0] = [];
        assert!(job_frames(none.iter()).is_empty());
        // A quarter of a frame each, one that is longer than a frame, and a last one.
        let mut all: Vec<JobReport> = (1..=6).map(|id| report(id, MAX_JOB_REPORTS / 4)).collect();
        all.extend([report(7, MAX_JOB_REPORTS + 1), report(8, 1)]);
        let frames = job_frames(all.iter());
        let parsed: Vec<Vec<JobReport>> =
            frames.iter().map(|frame| frame.iter().map(|text| serde_json::from_slice(text).expect("JSON")).collect()).collect();
        let counts: Vec<usize> = parsed.iter().map(Vec::len).collect();
        assert_eq!(counts, [3, 3, 1, 1]);
        assert_eq!(parsed.concat(), all, "in their order");
        for frame in frames.iter().filter(|frame| frame.len() > 1) {
            assert!(frame.iter().map(Bytes::len).sum::<usize>() <= MAX_JOB_REPORTS);
        }
    }

    #[tokio::test]
    async fn of_documents_that_wait_the_last_is_taken() {
        let (sender, mut documents) = watch::channel(None);
        sender.send_replace(Some(1));
        sender.send_replace(Some(2));
        assert_eq!(next(&mut documents).await, Some(2));
        sender.send_replace(Some(3));
        assert_eq!(next(&mut documents).await, Some(3));
        drop(sender);
        assert_eq!(next(&mut documents).await, None);
    }
}
