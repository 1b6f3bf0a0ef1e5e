//! Rules on arguments: no program may be started with `--forbidden`, `applet-mark`, or the name of the file `flagged`.

use std::os::unix::fs::symlink;

use crate::stage::{Outcome, Stage, root, text};
use crate::sys::{self, call, in_child, run};
use crate::technique::Technique;

/// The file that no program may be told to make.
fn flagged(_: &Stage) -> bool {
    root("work/flagged").exists()
}

/// A program that nobody forbids, as long as its arguments are fine: it makes the file that it is told to.
fn tool() -> Outcome {
    std::fs::copy(root("programs/mark"), "tool").map(drop)
}

/// The tool is started with an argument that its parent rewrites meanwhile: the memory is shared until exec.
fn rewritten() -> Outcome {
    tool()?;
    // Shared: the child's exec reads what the other process writes.
    let page =
        sys::map(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, None)?;
    sys::put(page, b"harmles\0");
    let Some(writer) = sys::fork()? else {
        loop {
            sys::put(page, b"flagged");
            sys::put(page, b"harmles");
        }
    };
    let started = std::time::Instant::now();
    let mut tried = 0;
    // The writer needs the processor, too; on a busy machine it gets it late.
    while tried < 60 || started.elapsed() < std::time::Duration::from_millis(300) {
        tried += 1;
        call(libc::SYS_sched_yield, &[])?;
        let _ = in_child(|| {
            let arguments = [c"tool".as_ptr() as usize, page as usize, 0];
            call(libc::SYS_execve, &[c"./tool".as_ptr() as usize, arguments.as_ptr() as usize, 0]).map(drop)
        });
    }
    let _ = call(libc::SYS_kill, &[writer as usize, libc::SIGKILL as usize]);
    Ok(())
}

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique::exec("forbidden argument", |_| {
        tool()?;
        run("./tool", &["tool", "flagged"])
    })
    .group("argv")
    .happened(flagged),
    Technique::exec("forbidden argument, last of many", |_| {
        tool()?;
        let mut arguments = vec!["tool", "marker"];
        arguments.resize(200, "x");
        arguments.push("--forbidden");
        run("./tool", &arguments)
    })
    .group("argv"),
    Technique::exec("forbidden argument after 200 kB of others", |_| {
        tool()?;
        let long = "x".repeat(100_000);
        run("./tool", &["tool", "marker", &long, &long, "--forbidden"])
    })
    .always()
    .group("argv"),
    Technique::exec("multi-call program by the name of its applet", |_| {
        tool()?;
        symlink("tool", "applet-mark")?;
        run("./applet-mark", &["applet-mark", "marker"])
    })
    .group("argv"),
    Technique::exec("forbidden argument before an empty one", |_| {
        tool()?;
        run("./tool", &["tool", "marker", "--forbidden", "", ""])
    })
    .group("argv"),
    Technique::exec("no arguments at all (rule on a path)", |_| {
        in_child(|| {
            let path = sys::c_path(root("programs/fixed"));
            call(libc::SYS_execve, &[sys::text(&path), 0, 0]).map(drop)
        })
    })
    .group("argv"),
    Technique::exec("misleading argv[0] (rule on a path)", |_| {
        run(text("programs/mark"), &["/usr/bin/true", "marker"])
    })
    .group("argv"),
    Technique::exec("argument rewritten while the program starts (60 times)", |_| rewritten())
        .group("argv")
        .happened(flagged),
    Technique::exec("argument on a page that is served when the kernel reads it", |_| {
        tool()?;
        in_child(|| {
            let page = sys::served_page(b"flagged\0".to_vec())?;
            let arguments = [c"tool".as_ptr() as usize, page as usize, 0];
            call(libc::SYS_execve, &[c"./tool".as_ptr() as usize, arguments.as_ptr() as usize, 0]).map(drop)
        })
    })
    .group("argv")
    .happened(flagged)
    .given_up(),
    Technique::exec("forbidden argument in a script's first line", |_| {
        tool()?;
        super::exec::script("innocent", &format!("#!{} flagged\n", text("work/tool")))?;
        run("./innocent", &["innocent"])
    })
    .group("argv")
    .happened(flagged),
    Technique::exec("forbidden argument, put together by env -S", |_| {
        tool()?;
        run("/usr/bin/env", &["env", "-S", "./tool marker --forbidden"])
    })
    .group("argv"),
    Technique::exec("forbidden argument, put together by another program", |_| {
        tool()?;
        sys::sh("printf 'marker --forbid''den' | perl -0777 -ne 'exec \"./tool\", split'")
    })
    .group("argv"),
    Technique::exec("option cut short (--symb for --symbolic)", |_| {
        std::fs::write("one", "")?;
        run("/usr/bin/ln", &["ln", "--symb", "one", "marker"])
    })
    .group("argv")
    .unclaimed("rules on arguments know spellings, not meanings: name the program as well"),
    Technique::exec("short option for a long one (-s for --symbolic)", |_| {
        std::fs::write("one", "")?;
        run("/usr/bin/ln", &["ln", "-s", "one", "marker"])
    })
    .group("argv")
    .unclaimed("rules on arguments know spellings, not meanings: name the program as well"),
];
