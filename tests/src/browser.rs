//! A person's browser, as far as signing in goes: follows redirects, keeps cookies, fills in forms.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use url::Url;

use crate::web::{self, Page};

/// More than any sign-in takes.
const MOST_REDIRECTS: usize = 10;
const MOST_PAGES: usize = 10;

/// Cookies of one person at one provider.
#[derive(Default)]
pub struct Browser {
    cookies: BTreeMap<String, String>,
}

/// What a page asks.
#[derive(Debug)]
struct Form {
    action: String,
    post: bool,
    /// Name, value, type.
    fields: Vec<(String, String, String)>,
}

impl Browser {
    /// A fresh one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens `link`, as `user` would: types the name where one is asked for, agrees to everything, and goes
    /// on until no page asks anything more. The last page is the result.
    ///
    /// # Errors
    /// The provider refused, or the pages never end.
    pub fn sign_in(&mut self, link: &str, user: &str) -> Result<Page> {
        let mut page = self.open(&Url::parse(link).with_context(|| format!("`{link}` is no link"))?, None)?;
        for _ in 0..MOST_PAGES {
            if page.status >= 400 {
                bail!("{} answered {}: {}", page.url, page.status, text_of(&page.body));
            }
            let Some(form) = form_of(&page.body) else { return Ok(page) };
            let action = page.url.join(&unescape(&form.action))?;
            let fields = filled(&form, user);
            page = if form.post {
                self.open(&action, Some(&fields))?
            } else {
                let mut action = action;
                action.query_pairs_mut().extend_pairs(&fields);
                self.open(&action, None)?
            };
        }
        bail!("the sign-in does not end: {}", text_of(&page.body))
    }

    /// A request and the redirects that follow.
    fn open(&mut self, url: &Url, form: Option<&[(String, String)]>) -> Result<Page> {
        let mut page = self.request(url, form)?;
        for _ in 0..MOST_REDIRECTS {
            let Some(next) = page.header("location").next().filter(|_| (300..400).contains(&page.status))
            else {
                return Ok(page);
            };
            let next = page.url.join(next)?;
            page = self.request(&next, None)?;
        }
        bail!("{url} redirects without end")
    }

    fn request(&mut self, url: &Url, form: Option<&[(String, String)]>) -> Result<Page> {
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let page = web::request(url, &cookies.join("; "), form)?;
        for cookie in page.header("set-cookie") {
            let pair = cookie.split(';').next().unwrap_or_default();
            if let Some((name, value)) = pair.split_once('=') {
                if value.is_empty() {
                    self.cookies.remove(name);
                } else {
                    self.cookies.insert(name.to_owned(), value.to_owned());
                }
            }
        }
        Ok(page)
    }
}

/// Hidden fields as they are; the person's name where a name is asked; anything for a password, which
/// neither of the tests' providers checks; the first button is the one that agrees.
fn filled(form: &Form, user: &str) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut pressed = false;
    for (name, value, kind) in &form.fields {
        let value = match (name.as_str(), kind.as_str()) {
            ("user" | "login" | "username", _) => user.to_owned(),
            (_, "password") => "any".to_owned(),
            (_, "submit") if pressed => continue,
            (_, "submit") => {
                pressed = true;
                unescape(value)
            }
            _ => unescape(value),
        };
        fields.push((name.clone(), value));
    }
    fields
}

/// The first form of a page.
fn form_of(html: &str) -> Option<Form> {
    let lower = html.to_ascii_lowercase();
    let start = lower.find("<form")?;
    let end = lower[start..].find("</form").map_or(html.len(), |at| start + at);
    let (html, lower) = (&html[start..end], &lower[start..end]);
    let open = &html[..html.find('>')?];
    let mut form = Form {
        action: attribute(open, "action").unwrap_or_default(),
        post: attribute(open, "method").is_some_and(|method| method.eq_ignore_ascii_case("post")),
        fields: Vec::new(),
    };
    for (at, _) in lower.match_indices('<') {
        let tag = &html[at..html[at..].find('>').map_or(html.len(), |end| at + end)];
        let element = tag[1..].split([' ', '\n', '\t', '/']).next().unwrap_or_default().to_ascii_lowercase();
        if !matches!(element.as_str(), "input" | "select" | "button") {
            continue;
        }
        if let Some(name) = attribute(tag, "name") {
            let kind = attribute(tag, "type").unwrap_or_default();
            form.fields.push((name, attribute(tag, "value").unwrap_or_default(), kind));
        }
    }
    Some(form)
}

/// The value of an attribute, quoted or not.
fn attribute(tag: &str, name: &str) -> Option<String> {
    let mut from = 0;
    while let Some(found) = tag[from..].find(&format!("{name}=")) {
        let at = from + found;
        from = at + name.len() + 1;
        if !tag[..at].ends_with([' ', '\n', '\t']) {
            continue;
        }
        let value = &tag[from..];
        let value = match value.chars().next()? {
            quote @ ('"' | '\'') => value[1..].split(quote).next()?,
            _ => value.split([' ', '\n', '\t', '>']).next()?,
        };
        return Some(value.to_owned());
    }
    None
}

fn unescape(text: &str) -> String {
    text.replace("&quot;", "\"")
        .replace("&#39;", "'")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&#x2F;", "/")
        .replace("&amp;", "&")
}

/// A page's text, for error messages.
fn text_of(html: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for letter in html.chars() {
        match letter {
            '<' => inside = true,
            '>' => inside = false,
            letter if !inside => text.push(letter),
            _ => {}
        }
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_and_filled_in() {
        let page = r#"<form method="post" action='/go?a=1&amp;b=2'><input type=hidden name=xsrf value="a&quot;b">
            <input required type="text" name="login"><input name="password" type="password">
            <button type=submit name=answer value=yes>Y</button><button type=submit name=answer value=no>N</button></form>"#;
        let form = form_of(page).unwrap();
        assert!(form.post);
        assert_eq!(unescape(&form.action), "/go?a=1&b=2");
        let fields = filled(&form, "alice");
        let expected = [("xsrf", "a\"b"), ("login", "alice"), ("password", "any"), ("answer", "yes")];
        let expected: Vec<(String, String)> =
            expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(fields, expected);
    }
}
