//! `policy docs`: a page for people.

use std::fs;

use serde_json::json;

use super::load;
use crate::{args::Docs, failure::Failure, gateway::Context};

pub(super) fn docs(context: &Context, args: &Docs) -> Result<(), Failure> {
    let (bundle, policy) = load(context, &args.dir)?;
    let page = policy.page(&bundle);
    let out = context.out;
    if let Some(file) = &args.out {
        fs::write(file, &page).map_err(|err| {
            Failure::failed(format!("cannot write the page into `{}`", file.display())).because(&err)
        })?;
    }
    if out.json {
        out.json(&json!({ "version": policy.version(), "file": args.out, "page": page }))?;
    } else if let Some(file) = &args.out {
        out.line(format!("Wrote `{}`: {} rules.", file.display(), policy.rules().count()))?;
    } else {
        // Control characters were taken out when the page was made.
        out.line(page.trim_end())?;
    }
    Ok(())
}
