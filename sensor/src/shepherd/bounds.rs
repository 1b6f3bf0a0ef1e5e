//! Capabilities that nobody in the session shall ever have: taken out of the bounding set, so that not even root or a set-uid
//! program gets them back. For operations that are a capability rather than a system call.
//!
//! Unsafe: `prctl`, of which there is no wrapper for this.

use sallyport_sensor_abi::policy::operation;

use super::filter::{Refusals, bit};

/// Operations, and the capability each needs: `CAP_NET_ADMIN`, `CAP_SYS_RAWIO`, `CAP_SYS_MODULE`, `CAP_SYS_TIME`.
const CAPABILITIES: [(u32, u32); 4] = [
    (operation::NETWORK_ADMIN, 12),
    (operation::KERNEL_ACCESS, 17),
    (operation::MODULE, 16),
    (operation::CLOCK, 25),
];

/// Operations that are refused by a missing capability.
pub(crate) const BOUNDED: u32 =
    bit(CAPABILITIES[0].0) | bit(CAPABILITIES[1].0) | bit(CAPABILITIES[2].0) | bit(CAPABILITIES[3].0);

/// Gives the capabilities up for good. Needs `CAP_SETPCAP`; in force from the next execution on.
///
/// # Errors
/// The kernel refuses, or the capability would be inherited all the same.
pub(crate) fn tighten(refusals: Refusals) -> Result<(), String> {
    let taken = CAPABILITIES.into_iter().filter(|(operation, _)| refusals.operations & bit(*operation) != 0);
    let capabilities: Vec<u32> = taken.map(|(_, capability)| capability).collect();
    if capabilities.is_empty() {
        return Ok(());
    }
    let inherited = inherited()?;
    for capability in capabilities {
        if inherited >> capability & 1 == 1 {
            return Err(format!(
                "capability {capability} cannot be given up, since the sensor passes it on; start the sensor without inheritable capabilities"
            ));
        }
        // SAFETY: takes numbers.
        #[allow(unsafe_code, reason = "no wrapper of PR_CAPBSET_DROP")]
        let status = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
        if status != 0 {
            let error = std::io::Error::last_os_error();
            return Err(format!("capability {capability} cannot be given up: {error}"));
        }
    }
    Ok(())
}

/// What survives an execution beside the bounding set.
fn inherited() -> Result<u64, String> {
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|error| format!("the session's capabilities cannot be read: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapInh:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or_else(|| "the session's capabilities cannot be read from /proc/self/status".to_owned())
}
