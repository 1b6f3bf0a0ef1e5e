//! Plain HTTP to loopback servers: as much of a browser's transport as signing in needs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use url::Url;

/// A response, whole.
#[derive(Debug)]
pub struct Page {
    /// Where it came from.
    pub url: Url,
    /// Status code.
    pub status: u16,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    /// Body as text.
    pub body: String,
}

impl Page {
    /// Every value of a header.
    pub fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// One request, one connection. `form`: POST of these fields; else GET.
///
/// # Errors
/// The server cannot be reached, or does not speak HTTP.
pub fn request(url: &Url, cookies: &str, form: Option<&[(String, String)]>) -> Result<Page> {
    if url.scheme() != "http" {
        bail!("{url}: only plain http, to loopback");
    }
    let address = url.socket_addrs(|| None)?;
    let mut stream = TcpStream::connect(&address[..]).with_context(|| format!("connect to {url}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let target = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let body =
        form.map(|fields| url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish());
    let method = if body.is_some() { "POST" } else { "GET" };
    // HTTP/1.0: the body ends with the connection and is never chunked.
    let mut head = format!("{method} {target} HTTP/1.0\r\nHost: {}\r\nAccept: */*\r\n", url.authority());
    if !cookies.is_empty() {
        head.push_str(&format!("Cookie: {cookies}\r\n"));
    }
    if let Some(body) = &body {
        head.push_str(&format!(
            "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    stream.write_all(format!("{head}\r\n{}", body.unwrap_or_default()).as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("read the answer of {url}"))?;
    parse(url, &answer)
}

fn parse(url: &Url, answer: &[u8]) -> Result<Page> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("{url} gave no HTTP answer"))?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok(Page {
        url: url.clone(),
        status: status.with_context(|| format!("{url} gave no HTTP status"))?,
        headers,
        body: body.to_owned(),
    })
}
