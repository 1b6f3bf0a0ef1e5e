//! The state database: one SQLite file, one connection, one thread that owns it.
//!
//! Callers send closures and await the answer, so no lock is held over an await and writes are serial.
//! WAL lets `join-token` and `revoke-sensor` write from another process while the gateway runs.

use rusqlite::Connection;
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, oneshot};

/// Closures waiting for the connection. A caller that finds it full waits: state calls are rare and short.
const QUEUE: usize = 256;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be opened or migrated.
    #[error("cannot open the state database `{path}`")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: rusqlite::Error,
    },
    /// A statement failed.
    #[error("the state database refused a statement")]
    Statement(#[from] rusqlite::Error),
    /// The thread is gone: the gateway is stopping.
    #[error("the state database is closed")]
    Closed,
}

/// Handle to the state database. Cheap to clone; the last one closes it.
#[derive(Clone)]
pub struct State {
    jobs: mpsc::Sender<Job>,
}

impl State {
    /// Opens (creating it, mode 0600) and migrates the database file.
    ///
    /// # Errors
    /// The file cannot be opened, or its schema is newer than this program.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let fail = |err| StateError::Open { path: path.to_owned(), err };
        let mut connection = Connection::open(path).map_err(fail)?;
        crate::identity::store::migrate(&connection).map_err(fail)?;
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        std::thread::spawn(move || {
            while let Some(job) = queue.blocking_recv() {
                job(&mut connection);
            }
        });
        Ok(Self { jobs })
    }

    /// Runs `work` on the connection's thread. Several statements that belong together use
    /// `connection.transaction()`.
    ///
    /// # Errors
    /// What `work` returns, or the database is closed.
    pub async fn call<T, F>(&self, work: F) -> Result<T, StateError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // The caller may have gone; its work was still done.
            let _ = answer.send(work(connection));
        });
        self.jobs.send(job).await.map_err(|_| StateError::Closed)?;
        Ok(answered.await.map_err(|_| StateError::Closed)??)
    }
}
