//! The pages a person sees: who are you, and do you want this.

use std::fmt::Write;

use crate::config::Config;

const HEAD: &str = "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>\
<title>Sallyport development identity</title><style>body{font:16px system-ui,sans-serif;max-width:34rem;\
margin:3rem auto;padding:0 1rem}.warn{background:#fff3cd;border:1px solid #d9b94f;padding:.6rem 1rem}\
button,select,input{font:inherit;padding:.4rem .8rem;margin:.3rem 0}</style>\
<p class=warn><b>Development identity provider.</b> No passwords: anybody may sign in as anybody.</p>";

/// A form that asks who signs in; `hidden` fields are carried along, and `shown` is said above it.
pub(crate) fn sign_in(config: &Config, action: &str, shown: &str, hidden: &[(&str, &str)]) -> String {
    let mut page = format!("{HEAD}<h1>Sign in</h1><p>{shown}</p><form method=post action='{action}'>");
    for (name, value) in hidden {
        let _ = write!(page, "<input type=hidden name='{}' value='{}'>", escape(name), escape(value));
    }
    page.push_str("<p><label>Who are you? <select name=user>");
    for (name, user) in &config.users {
        let _ = write!(page, "<option value='{}'>{}</option>", escape(name), escape(&user.name));
    }
    page.push_str(
        "</select></label></p><button type=submit name=answer value=allow>Sign in</button> \
                   <button type=submit name=answer value=deny>Refuse</button></form>",
    );
    page
}

/// A form that asks for the code shown in the terminal.
pub(crate) fn enter_code(problem: &str) -> String {
    format!(
        "{HEAD}<h1>Enter the code</h1><p>{}</p><form method=get action='/device'>\
         <input name=user_code autocomplete=off autofocus> <button type=submit>Go on</button></form>",
        escape(problem)
    )
}

/// Nothing more to do here.
pub(crate) fn done(text: &str) -> String {
    format!("{HEAD}<h1>Done</h1><p>{}</p>", escape(text))
}

/// Text for HTML, inside elements and quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}
