//! The layout of Cedar files: that of Cedar's own formatter, so that editors and `sallyport policy fmt` agree.
//!
//! What comes out is read again: the policies, their annotations and every comment must be the same, or nothing is changed.

use cedar_policy::PolicyId;
use cedar_policy_formatter::{Config, policies_str_to_pretty};

use crate::diagnostic::{Diagnostics, Faults};
use crate::load::{MAX_NESTING, span};
use crate::source;

/// The text of a Cedar file, laid out. `file`: its name in faults.
///
/// # Errors
/// It is not valid Cedar, or cannot be laid out without a loss.
pub fn format(file: &str, text: &str) -> Result<String, Diagnostics> {
    let mut faults = Faults::default();
    let before = policies(&mut faults, file, text);
    faults.result(())?;
    let mut faults = Faults::default();
    if before.is_empty() {
        return Ok(text.to_owned());
    }
    let laid_out = match policies_str_to_pretty(text, &Config::default()) {
        Ok(laid_out) => format!("{}\n", laid_out.trim_end()),
        Err(error) => {
            let help = "simplify the file, or leave it as it is";
            faults.file(file, format!("the file cannot be laid out: {error}"), Some(help.into()));
            return Err(faults.result(String::new()).err().unwrap_or(Diagnostics { faults: vec![] }));
        }
    };
    let sorted = |text: &str| {
        let mut comments: Vec<String> = source::comments(text).into_iter().map(str::to_owned).collect();
        comments.sort();
        comments
    };
    let after = policies(&mut faults, file, &laid_out);
    if before != after {
        faults.file(file, "laying the file out would change a rule", Some("please report this file".into()));
    } else if sorted(text) != sorted(&laid_out) {
        let help = "move comments between rules or onto lines of their own";
        faults.file(file, "laying the file out would lose a comment", Some(help.into()));
    }
    faults.result(laid_out)
}

/// Every policy in Cedar's JSON form, with its annotations.
fn policies(faults: &mut Faults, file: &str, text: &str) -> Vec<serde_json::Value> {
    let mut out = Vec::new();
    for chunk in source::cut(text) {
        if source::nesting(chunk.text) > MAX_NESTING {
            let help = "compare with a set, `[…].contains(…)`, or make several rules";
            let message = "the condition is too long or nested too deeply";
            faults.at((file, text), (chunk.offset, 1), message, Some(help.into()));
            continue;
        }
        match cedar_policy::Policy::parse(Some(PolicyId::new("one")), chunk.text) {
            Ok(policy) => out.extend(policy.to_json()),
            Err(errors) => {
                for error in errors.iter() {
                    let (offset, length) = span(error).unwrap_or((0, 1));
                    let message = crate::entities::chain(error);
                    faults.at((file, text), (chunk.offset + offset, length), message, None);
                }
            }
        }
    }
    out
}
