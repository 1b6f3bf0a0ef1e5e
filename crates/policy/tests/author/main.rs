//! What an author of policy sees: mistakes found, rules laid out, a page for people; and that no bundle breaks any of it.

mod format;
mod mistakes;
mod page;
mod smoke;
