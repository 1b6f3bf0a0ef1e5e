//! The sensor's end of the contract, with small programs in the place of processes.

use crate::rig::{Joined, Rig};
use bytes::Bytes;
use sallyport_contract::resume::{Incoming, Resumable};
use sallyport_contract::v1::channel_frame::Body;
use sallyport_contract::v1::gateway_order::Order;
use sallyport_contract::v1::sensor_link_client::SensorLinkClient;
use sallyport_contract::v1::sensor_report::Report;
use sallyport_contract::v1::*;
use sallyport_evidence::PolicyOrder;
use sallyport_evidence::order::Scope;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel as Transport;

/// What outlives a connection: the shepherds' state, as it were.
#[derive(Clone, Default)]
pub(crate) struct Host {
    pub(crate) ends: Arc<Mutex<HashMap<String, Shepherd>>>,
    pub(crate) orders: Arc<Mutex<Vec<Order>>>,
    /// Answers to bundles: empty accepts.
    pub(crate) policy_error: Arc<Mutex<String>>,
    /// What it says that it enforces.
    pub(crate) standing: Arc<Mutex<PolicyStatus>>,
}

pub(crate) struct Shepherd {
    pub(crate) session: String,
    pub(crate) end: Resumable,
    program: Program,
    /// Output not in frames yet.
    backlog: Vec<Body>,
}

/// What a command line of the tests means.
enum Program {
    /// Echoes stdin to stdout; exits 0 at its end.
    Cat,
    /// Ignores input; ended by a hang-up.
    Sleep,
}

/// A connected sensor. Dropping it cuts the connection, not the host.
pub(crate) struct Connected {
    pub(crate) reports: mpsc::Sender<SensorReport>,
    pub(crate) client: SensorLinkClient<Transport>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn hello(channels: Vec<LiveChannel>) -> SensorReport {
    let facts = HostFacts { mode: "lsm".into(), kernel: "6.12".into(), ..HostFacts::default() };
    SensorReport { report: Some(Report::Hello(Hello { facts: Some(facts), channels, ..Hello::default() })) }
}

impl Host {
    pub(crate) async fn connect(&self, rig: &Rig, joined: &Joined) -> Connected {
        let mut client = rig.as_sensor(joined).await.max_decoding_message_size(64 << 20);
        let (reports, outgoing) = mpsc::channel(64);
        reports.send(hello(self.alive())).await.unwrap();
        let mut orders = client.control(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        let (host, link, up) = (self.clone(), client.clone(), reports.clone());
        let task = tokio::spawn(async move {
            let mut channels = tokio::task::JoinSet::new();
            let known: Vec<String> = host.ends.lock().unwrap().keys().cloned().collect();
            for id in known {
                channels.spawn(host.clone().channel(link.clone(), id));
            }
            while let Ok(Some(GatewayOrder { order: Some(order) })) = orders.message().await {
                host.orders.lock().unwrap().push(order.clone());
                match order {
                    Order::Start(start) => {
                        let line = match &start.work.as_ref().unwrap().work {
                            Some(work::Work::Command(command)) => command.line.clone(),
                            _ => b"cat".to_vec(),
                        };
                        if line == b"refuse" {
                            let refused = ChannelRefused {
                                channel_id: start.channel_id,
                                reason: "no such local user".into(),
                            };
                            up.send(SensorReport { report: Some(Report::Refused(refused)) }).await.unwrap();
                            continue;
                        }
                        if line == b"ignore" {
                            continue;
                        }
                        host.start(&start, &String::from_utf8(line).unwrap());
                        channels.spawn(host.clone().channel(link.clone(), start.channel_id));
                    }
                    Order::Bundle(bundle) => {
                        let status = host.follow(&bundle);
                        up.send(SensorReport { report: Some(Report::Policy(status)) }).await.unwrap();
                    }
                    Order::EndSession(end) => {
                        host.ends.lock().unwrap().retain(|_, shepherd| shepherd.session != end.session_id);
                    }
                    Order::Ping(_) => {}
                }
            }
        });
        Connected { reports, client, task }
    }

    /// Takes an order as a sensor does, without verifying anything.
    fn follow(&self, bundle: &PolicyBundle) -> PolicyStatus {
        let (text, _) = bundle.statement.rsplit_once("\n\n").expect("a signed note");
        let order = PolicyOrder::parse(&format!("{text}\n")).expect("an order");
        let mut standing = self.standing.lock().unwrap();
        (standing.version, standing.serial) = (bundle.version.clone(), bundle.serial);
        standing.error = self.policy_error.lock().unwrap().clone();
        if standing.error.is_empty() && order.scope == Scope::All {
            (standing.policy_version, standing.policy_serial) = (order.version, order.serial);
            if standing.canary_serial < order.serial {
                (standing.canary_version, standing.canary_serial) = (String::new(), 0);
            }
        } else if standing.error.is_empty() {
            (standing.canary_version, standing.canary_serial) = (order.version, order.serial);
        }
        standing.clone()
    }

    pub(crate) fn saw(&self, wanted: impl Fn(&Order) -> bool) -> bool {
        self.orders.lock().unwrap().iter().any(wanted)
    }

    fn alive(&self) -> Vec<LiveChannel> {
        let ends = self.ends.lock().unwrap();
        let live = |(id, shepherd): (&String, &Shepherd)| LiveChannel {
            session_id: shepherd.session.clone(),
            channel_id: id.clone(),
        };
        ends.iter().map(live).collect()
    }

    fn start(&self, start: &StartChannel, line: &str) {
        let stdout = |data: Bytes| Body::Chunk(Chunk { stream: Stream::Stdout.into(), data });
        let exit = |code| Body::Exit(Exit { status: Some(exit::Status::Code(code)), ..Exit::default() });
        let (program, backlog) = match line.split_once(' ') {
            Some(("exit", code)) => (Program::Sleep, vec![exit(code.parse().unwrap())]),
            Some(("flood", bytes)) => {
                // Numbered words, so that loss, doubling and disorder all show.
                let mut rest: usize = bytes.parse().unwrap();
                let mut next = 0u64;
                let mut frames = Vec::new();
                while rest > 0 {
                    let piece: Vec<u8> =
                        (0..rest.min(32 << 10) / 8).flat_map(|i| (next + i as u64).to_be_bytes()).collect();
                    next += piece.len() as u64 / 8;
                    rest -= piece.len();
                    frames.push(stdout(piece.into()));
                }
                frames.push(exit(0));
                (Program::Sleep, frames)
            }
            Some((kind @ ("text" | "binary"), mib)) => {
                let byte = if kind == "text" { b'x' } else { 0xfe };
                let piece = Bytes::from(vec![byte; 64 << 10]);
                let mut frames = vec![stdout(piece); mib.parse::<usize>().unwrap() * 16];
                frames.push(exit(0));
                (Program::Sleep, frames)
            }
            _ if line == "sleep" => (Program::Sleep, vec![stdout(Bytes::from_static(b"sleeping\n"))]),
            _ => (Program::Cat, Vec::new()),
        };
        let mut backlog = backlog;
        backlog.reverse();
        let (session, end) = (start.session_id.clone(), Resumable::new(start.channel_id.clone()));
        self.ends
            .lock()
            .unwrap()
            .insert(start.channel_id.clone(), Shepherd { session, end, program, backlog });
    }

    /// Runs one channel over one connection.
    async fn channel(self, mut link: SensorLinkClient<Transport>, id: String) {
        let (out, outgoing) = mpsc::channel(100_000);
        let attach = match self.ends.lock().unwrap().get_mut(&id) {
            Some(shepherd) => shepherd.end.attach_frame(),
            None => return,
        };
        out.send(attach).await.unwrap();
        let Ok(answer) = link.channel(ReceiverStream::new(outgoing)).await else { return };
        let mut incoming = answer.into_inner();
        while let Ok(Some(frame)) = incoming.message().await {
            let Some(write) = self.step(&id, frame) else { return };
            for frame in write {
                if out.send(frame).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Takes a frame; gives what to write. None: the channel is gone.
    fn step(&self, id: &str, frame: ChannelFrame) -> Option<Vec<ChannelFrame>> {
        let mut ends = self.ends.lock().unwrap();
        let shepherd = ends.get_mut(id)?;
        let mut write = Vec::new();
        match shepherd.end.on_frame(frame).unwrap() {
            Incoming::Attached { resend } => write.extend(resend),
            Incoming::Deliver { seq, body } => {
                match (&shepherd.program, body) {
                    (Program::Cat, Body::Chunk(chunk)) => {
                        let data = chunk.data;
                        shepherd
                            .backlog
                            .insert(0, Body::Chunk(Chunk { stream: Stream::Stdout.into(), data }));
                    }
                    (Program::Cat, Body::Eof(_)) => {
                        shepherd.backlog.insert(0, Body::Eof(Eof { stream: Stream::Stdout.into() }));
                        let exit = Exit { status: Some(exit::Status::Code(0)), ..Exit::default() };
                        shepherd.backlog.insert(0, Body::Exit(exit));
                    }
                    (_, Body::Hangup(_)) => {
                        let exit =
                            Exit { status: Some(exit::Status::Signal("HUP".into())), ..Exit::default() };
                        shepherd.backlog = vec![Body::Exit(exit)];
                    }
                    _ => {}
                }
                shepherd.end.take(seq);
            }
            _ => {}
        }
        while let Some(body) = shepherd.backlog.pop() {
            match shepherd.end.send(body.clone()) {
                Ok(frame) => write.extend(frame),
                Err(_) => {
                    shepherd.backlog.push(body);
                    break;
                }
            }
        }
        write.extend(shepherd.end.ack_due(true));
        Some(write)
    }
}
