//! The browser's way back: an HTTP listener on 127.0.0.1 that takes one answer to the question we asked. Where
//! the browser runs on another computer, a person may paste the address at which it ended up.
//!
//! Anybody on this computer can talk to it, so nothing counts without the `state` that went out with the
//! question; whatever lacks it gets a page and is otherwise ignored.

use std::{convert::Infallible, net::Ipv4Addr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
    time::timeout,
};
use url::form_urlencoded;

/// The path of the redirect.
const CALLBACK: &str = "/callback";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum LoopbackError {
    /// No port.
    #[error("cannot listen on 127.0.0.1 for the browser's answer")]
    Listen(#[source] std::io::Error),
    /// Nobody signed in.
    #[error("nobody signed in within {}", crate::clock::span(*.0))]
    Silent(Duration),
}

/// What the browser brought.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The authorization code, or why there is none.
    pub code: Result<String, String>,
    /// `iss` (RFC 9207), if it was sent.
    pub issuer: Option<String>,
}

/// The listener.
pub struct Listener {
    tcp: TcpListener,
    port: u16,
}

impl Listener {
    /// On a free port of 127.0.0.1.
    ///
    /// # Errors
    /// There is none.
    pub async fn open() -> Result<Self, LoopbackError> {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(LoopbackError::Listen)?;
        let port = tcp.local_addr().map_err(LoopbackError::Listen)?.port();
        Ok(Self { tcp, port })
    }

    /// Where the browser is sent back to.
    #[must_use]
    pub fn redirect_uri(&self) -> String {
        format!("http://127.0.0.1:{}{CALLBACK}", self.port)
    }

    /// Waits for the answer that carries this state. `pasted` gives lines that a person enters.
    ///
    /// # Errors
    /// It does not come in time.
    pub async fn answer(
        self,
        state: &str,
        patience: Duration,
        pasted: Option<mpsc::Receiver<String>>,
    ) -> Result<Answer, LoopbackError> {
        let (found, mut answers) = mpsc::channel(1);
        let state: Arc<str> = state.into();
        let accept = async {
            // A browser opens a few connections; more at once are not for us.
            let places = Arc::new(Semaphore::new(8));
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let Ok((stream, _)) = self.tcp.accept().await else { continue };
                let (found, state) = (found.clone(), Arc::clone(&state));
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let page = respond(&request, &state, &found);
                        async move { Ok::<_, Infallible>(page) }
                    });
                    // A client that misbehaves only loses its own connection.
                    let _ = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(Duration::from_secs(10))
                        .keep_alive(false)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                    drop(place);
                });
            }
        };
        let received = timeout(patience, async {
            tokio::select! {
                () = accept => None,
                answer = answers.recv() => answer,
                answer = from_paste(pasted, &state) => Some(answer),
            }
        });
        let answer = received.await.ok().flatten().ok_or(LoopbackError::Silent(patience))?;
        // Lets the page get out before the process may end.
        tokio::time::sleep(Duration::from_millis(150)).await;
        Ok(answer)
    }
}

/// The answer in an address that was pasted; never ends without one.
async fn from_paste(lines: Option<mpsc::Receiver<String>>, state: &str) -> Answer {
    if let Some(mut lines) = lines {
        while let Some(line) = lines.recv().await {
            let query =
                line.trim().split_once('?').map(|(_, query)| query.split('#').next().unwrap_or_default());
            match query.and_then(|query| read(query, state)) {
                Some(answer) => return answer,
                None if line.trim().is_empty() => {}
                None => eprintln!("That is not the address of this sign-in. Waiting…"),
            }
        }
    }
    std::future::pending().await
}

fn respond(request: &Request<Incoming>, state: &str, found: &mpsc::Sender<Answer>) -> Response<Full<Bytes>> {
    if request.uri().path() != CALLBACK || request.method() != Method::GET {
        return page(
            StatusCode::NOT_FOUND,
            "Nothing here",
            "This is the sallyport command waiting for a sign-in.",
        );
    }
    match read(request.uri().query().unwrap_or_default(), state) {
        None => page(
            StatusCode::BAD_REQUEST,
            "Not the answer that was waited for",
            "This sign-in was not started by the sallyport command that is waiting. Start again in the terminal.",
        ),
        Some(answer) => {
            let signed_in = answer.code.is_ok();
            // Full: an answer was taken already.
            if found.try_send(answer).is_err() {
                return page(StatusCode::CONFLICT, "Already answered", "You can close this page.");
            }
            if signed_in {
                page(StatusCode::OK, "Thank you", "You can close this page and go back to the terminal.")
            } else {
                page(StatusCode::OK, "Not signed in", "The terminal says why. You can close this page.")
            }
        }
    }
}

/// The answer in a query, if it carries that state.
fn read(query: &str, state: &str) -> Option<Answer> {
    let field = |name: &str| {
        form_urlencoded::parse(query.as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    };
    if field("state")? != state {
        return None;
    }
    let code = match (field("code"), field("error")) {
        (_, Some(error)) => Err(match field("error_description") {
            Some(description) => format!("{error}: {description}"),
            None => error,
        }),
        (Some(code), None) => Ok(code),
        (None, None) => return None,
    };
    Some(Answer { code, issuer: field("iss") })
}

/// All text is ours, so nothing needs escaping; nothing of the request is repeated.
fn page(status: StatusCode, title: &str, text: &str) -> Response<Full<Bytes>> {
    let html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{title} – Sallyport</title><style>body{{font:18px/1.5 system-ui,sans-serif;max-width:32em;\
         margin:20vh auto;padding:0 1em;color-scheme:light dark}}</style><h1>{title}</h1><p>{text}</p></html>"
    );
    let mut response = Response::new(Full::new(Bytes::from(html)));
    *response.status_mut() = status;
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
        (REFERRER_POLICY, "no-referrer"),
        (CONNECTION, "close"),
    ] {
        response.headers_mut().insert(name, http::HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    #[test]
    fn only_the_right_state_counts() {
        assert_eq!(
            read("code=abc&state=s1&iss=https%3A%2F%2Fidp", "s1"),
            Some(Answer { code: Ok("abc".to_owned()), issuer: Some("https://idp".to_owned()) })
        );
        assert_eq!(read("code=abc&state=s2", "s1"), None);
        assert_eq!(read("code=abc", "s1"), None);
        assert_eq!(read("state=s1", "s1"), None);
        let refused = read("error=access_denied&error_description=no&state=s1", "s1").expect("an answer");
        assert_eq!(refused.code, Err("access_denied: no".to_owned()));
    }

    async fn fetch(port: u16, target: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("connected");
        let request = format!("GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    #[tokio::test]
    async fn waits_through_noise_for_the_answer() {
        let listener = Listener::open().await.expect("listens");
        let port = listener.port;
        let waiting = tokio::spawn(listener.answer("right", Duration::from_secs(10), None));
        assert!(fetch(port, "/favicon.ico").await.starts_with("HTTP/1.1 404"));
        let forged = fetch(port, "/callback?code=evil&state=wrong").await;
        assert!(forged.starts_with("HTTP/1.1 400") && !forged.contains("evil"));
        assert!(fetch(port, "/callback?code=good&state=right").await.starts_with("HTTP/1.1 200"));
        let answer = waiting.await.expect("task").expect("answer");
        assert_eq!(answer.code, Ok("good".to_owned()));
    }

    #[tokio::test]
    async fn gives_up() {
        let listener = Listener::open().await.expect("listens");
        let waited = listener.answer("s", Duration::from_millis(50), None).await;
        assert!(matches!(waited, Err(LoopbackError::Silent(_))));
    }

    #[tokio::test]
    async fn takes_a_pasted_address() {
        let listener = Listener::open().await.expect("listens");
        let (paste, pasted) = mpsc::channel(4);
        let waiting = tokio::spawn(listener.answer("right", Duration::from_secs(10), Some(pasted)));
        for line in ["what?\n", "http://127.0.0.1:1/callback?code=evil&state=wrong\n"] {
            paste.send(line.to_owned()).await.expect("taken");
        }
        paste.send(" http://127.0.0.1:1/callback?code=good&state=right#x\n".to_owned()).await.expect("taken");
        let answer = waiting.await.expect("task").expect("answer");
        assert_eq!(answer.code, Ok("good".to_owned()));
    }
}
