//! Delivering records: batches up in order, forgotten only when the gateway says they are on its disk.

use std::collections::VecDeque;
use std::time::Duration;

use sallyport_contract::v1::{RecordAck, RecordBatch};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Client, Lost};
use crate::spool::Spool;

/// Bytes of records in one batch.
const BATCH: usize = 256 << 10;
/// Batches sent and not acknowledged: with [`BATCH`], 4 MiB in flight.
const IN_FLIGHT: usize = 16;

/// After a failed stream, before the next.
const PAUSE: Duration = Duration::from_secs(5);

/// Delivers for as long as the spool works. A failed stream is opened again and does not take the connection with it: a
/// gateway that cannot take records now must not end sessions.
pub(super) async fn deliver(client: Client, spool: Spool) -> Lost {
    loop {
        match stream(client.clone(), spool.clone()).await {
            lost @ Lost::Spool(_) => return lost,
            lost => {
                tracing::warn!(reason = %super::chain(&lost), "records are not taken by the gateway; they are kept")
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One stream. What was not acknowledged is sent again on the next.
async fn stream(mut client: Client, spool: Spool) -> Lost {
    let (batches, outgoing) = mpsc::channel(1);
    let mut sender = Sender { spool: spool.clone(), place: 0, waiting: VecDeque::new() };
    // The gateway may answer only after the first batch, so sending does not wait for the answer.
    let (acks, mut acked) = mpsc::channel::<RecordAck>(IN_FLIGHT);
    let receive = async move {
        let mut stream = match client.evidence(ReceiverStream::new(outgoing)).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return Lost::Stream(Box::new(status)),
        };
        loop {
            match stream.message().await {
                Ok(Some(ack)) => {
                    if acks.send(ack).await.is_err() {
                        return Lost::Closed;
                    }
                }
                Ok(None) => return Lost::Closed,
                Err(status) => return Lost::Stream(Box::new(status)),
            }
        }
    };
    let send = async move {
        match sender.run(&batches, &mut acked).await {
            Ok(never) => match never {},
            Err(lost) => lost,
        }
    };
    tokio::select! {
        lost = receive => lost,
        lost = send => lost,
    }
}

struct Sender {
    spool: Spool,
    place: i64,
    /// Boot and last number of every batch that is not acknowledged.
    waiting: VecDeque<(String, u64)>,
}

impl Sender {
    async fn run(
        &mut self,
        batches: &mpsc::Sender<RecordBatch>,
        acks: &mut mpsc::Receiver<RecordAck>,
    ) -> Result<std::convert::Infallible, Lost> {
        let mut newest = self.spool.newest();
        loop {
            newest.mark_unchanged();
            while self.waiting.len() < IN_FLIGHT {
                let Some(batch) = self.spool.read(self.place, BATCH).await? else { break };
                self.place = batch.place;
                let last = batch.first_seq + batch.records.len() as u64 - 1;
                self.waiting.push_back((batch.boot.clone(), last));
                let message =
                    RecordBatch { boot_id: batch.boot, first_seq: batch.first_seq, records: batch.records };
                batches.send(message).await.map_err(|_| Lost::Closed)?;
            }
            let has_room = self.waiting.len() < IN_FLIGHT;
            tokio::select! {
                ack = acks.recv() => self.on_ack(ack.ok_or(Lost::Closed)?).await?,
                changed = newest.changed(), if has_room => {
                    changed.map_err(|_| crate::spool::SpoolError::Stopped)?;
                }
            }
        }
    }

    async fn on_ack(&mut self, ack: RecordAck) -> Result<(), Lost> {
        while self
            .waiting
            .front()
            .is_some_and(|(boot, last)| *boot == ack.boot_id && *last <= ack.durable_seq)
        {
            self.waiting.pop_front();
        }
        self.spool.forget(ack.boot_id, ack.durable_seq).await?;
        Ok(())
    }
}
