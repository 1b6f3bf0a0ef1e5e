//! A listener that counts who reached it: the witness of connections that must not happen.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};

/// Accepts, counts, greets and hangs up. The thread ends with the process.
pub struct Witness {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Witness {
    /// Listens on a loopback address; port 0 is one of the system's choice.
    ///
    /// # Errors
    /// The address is not to be had.
    pub fn listen(address: &str, port: u16) -> Result<Self> {
        let listener =
            TcpListener::bind((address, port)).with_context(|| format!("listen on {address}:{port}"))?;
        let address = listener.local_addr()?;
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                if let Ok(mut stream) = stream {
                    let _ = stream.write_all(b"witness\n");
                }
            }
        });
        Ok(Self { address, accepted })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many have reached it. The kernel completes connections before `accept`: to be sure that there
    /// were none, a control connection is made first and must be counted.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}
