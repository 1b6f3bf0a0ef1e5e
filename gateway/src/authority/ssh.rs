//! The SSH authorities: user CA, host CA, host key.
