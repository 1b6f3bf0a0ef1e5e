//! The demo's story on this computer's own kernel, in whichever mode it supports.

use anyhow::Result;
use sallyport_e2e::story::{self, Facts};
use sallyport_e2e::{Stage, StageOptions};

#[test]
fn the_story_holds_on_this_kernel() -> Result<()> {
    let facts = Facts::new()?;
    let mut stage = Stage::start(&StageOptions { bundle: facts.bundle.clone(), ..StageOptions::default() })?;
    let told = story::tell(&mut stage, facts, &mut |line| println!("{line:?}"));
    let outcome = told.inspect_err(|_| {
        println!("gateway:\n{}\nsensor:\n{}", stage.gateway_log(40), stage.sensor_log(40));
    })?;
    story::print_table(&outcome.lines, &mut std::io::stdout())?;
    println!("mode: {}", outcome.mode);
    assert!(outcome.held(), "a line of the story did not hold");
    Ok(())
}
