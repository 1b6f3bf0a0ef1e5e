//! Empty: the programs are in `main.rs`. It lets other tools depend on this package.
#![no_std]
