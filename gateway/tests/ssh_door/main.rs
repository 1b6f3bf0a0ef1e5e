//! The SSH door with the real OpenSSH client in front of it. Sign-in is real, against a provider in this process; hosts are local
//! processes.


mod hostile;
mod host;
mod provider;
mod rig;
mod sessions;
mod sign_in;
mod stalls;
