//! Races and floods: what is judged is what is done, however fast it is changed meanwhile and however much there is of it.
//!
//! Each race has a thread that changes something (argument memory, a path, a symbolic link, an address) all the time, and
//! another that acts only when it has just seen the permitted value there, so that whoever judges what is there at the
//! *entry* of the call is deceived by each race that is won. A call counts only if there was a change while it ran. The oracles are outside: the size
//! of files, what listeners of the test heard. Without a session the same race does reach what is forbidden.
//!
//! Needs root. `SALLYPORT_FLIPS` sets how many calls count as enough (10,000 if it is not set; emulated machines take fewer).

#[path = "../kernel/host.rs"]
#[allow(dead_code, reason = "shared with the other kernel tests, which use all of it")]
mod host;
#[path = "../kernel/tables.rs"]
#[allow(dead_code, reason = "as above")]
mod tables;

mod addresses;
mod beside;
mod files;
mod floods;
mod forks;
mod programs;
mod racer;

/// Calls that are enough.
fn wanted() -> u64 {
    match std::env::var("SALLYPORT_FLIPS") {
        Ok(number) => number.parse().expect("SALLYPORT_FLIPS is a number"),
        Err(_) => 10_000,
    }
}

/// Prints a race that leaked nothing, and what that proves.
///
/// With no leak in n independent tries, the chance of one is below 3/n with 95 % confidence (the rule of three).
fn report(race: &str, tries: u64, control_hits: u64, control_tries: u64) {
    let bound = 300.0 / tries as f64;
    println!(
        "{race}: 0 leaks in {tries} tries, so fewer than {bound:.3} % leak (95 % confidence); \
         without a session {control_hits} of {control_tries} got through"
    );
}
