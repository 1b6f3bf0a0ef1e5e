//! The command as people run it, against a gateway and an identity provider that these tests run on loopback: TLS,
//! tokens, signatures and ssh certificates are real.

mod gateway;
mod issuer;
mod person;

mod author;
mod backtest;
mod changes;
mod login;
mod meaning;
mod policy;
mod records;
mod replay;
mod verify;
