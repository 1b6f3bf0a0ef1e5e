//! The forbidden program: a static one of two hundred bytes, which makes a file and ends.

/// Where it is loaded.
const BASE: u64 = 0x40_0000;
/// ELF header and one program header.
const HEADERS: usize = 64 + 56;

/// A program that makes the file `fixed`, or the one that its first argument names. Empty on other processors.
pub(crate) fn program(fixed: Option<&str>) -> Vec<u8> {
    let mut code = Vec::new();
    if cfg!(target_arch = "x86_64") {
        match fixed {
            // movabs rdi, address of the text after the code (the code is 38 bytes with this, and the text comes at 48)
            Some(_) => {
                code.extend([0x48, 0xbf]);
                code.extend((BASE + HEADERS as u64 + 48).to_le_bytes());
            }
            // mov rdi, [rsp + 16]
            None => code.extend([0x48, 0x8b, 0x7c, 0x24, 0x10]),
        }
        code.extend([0xbe, 0x41, 0, 0, 0]); // mov esi, O_WRONLY | O_CREAT
        code.extend([0xba, 0xa4, 0x01, 0, 0]); // mov edx, 0644
        code.extend([0xb8, 2, 0, 0, 0, 0x0f, 0x05]); // mov eax, SYS_open; syscall
        code.extend([0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]); // xor edi, edi; mov eax, SYS_exit; syscall
        code.resize(48, 0x90);
        code.extend(fixed.unwrap_or_default().as_bytes());
        code.push(0);
    }
    let length = (HEADERS + code.len()) as u64;
    let mut elf = Vec::new();
    elf.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version
    for word in [BASE + HEADERS as u64, 64, 0] {
        elf.extend(word.to_le_bytes()); // entry, program headers, section headers
    }
    elf.extend(0u32.to_le_bytes());
    for word in [64u16, 56, 1, 0, 0, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, readable and executable
    for word in [0, BASE, BASE, length, length, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// A program of no code that names another as its loader, which the kernel then starts in its place.
pub(crate) fn with_loader(loader: &str) -> Vec<u8> {
    /// Out of the other's way.
    const ELSEWHERE: u64 = 0x1000_0000;
    let text = 64 + 2 * 56;
    let length = (text + loader.len() + 1) as u64;
    let mut elf = Vec::new();
    elf.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version
    for word in [ELSEWHERE + text as u64, 64, 0] {
        elf.extend(word.to_le_bytes()); // entry, program headers, section headers
    }
    elf.extend(0u32.to_le_bytes());
    for word in [64u16, 56, 2, 0, 0, 0] {
        elf.extend(word.to_le_bytes());
    }
    let (at, name) = (text as u64, loader.len() as u64 + 1);
    elf.extend([3, 0, 0, 0, 4, 0, 0, 0]); // PT_INTERP, readable
    for word in [at, ELSEWHERE + at, ELSEWHERE + at, name, name, 1] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend([1, 0, 0, 0, 4, 0, 0, 0]); // PT_LOAD, readable
    for word in [0, ELSEWHERE, ELSEWHERE, length, length, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(loader.as_bytes());
    elf.push(0);
    elf
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn both_kinds_make_their_file() {
        let folder = std::env::temp_dir().join(format!("sallyport-elf-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("folder");
        for (name, fixed) in [("argument", false), ("fixed", true)] {
            let (program, made) = (folder.join(name), folder.join(format!("made-by-{name}")));
            let made_text = made.to_str().expect("text");
            std::fs::write(&program, super::program(fixed.then_some(made_text))).expect("write");
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("mode");
            let status = std::process::Command::new(&program).arg(made_text).status().expect("run");
            assert!(status.success() && made.exists());
        }
        // And the same by another that names the first as its loader.
        let (program, made) = (folder.join("named"), folder.join("made-by-loader"));
        std::fs::write(&program, super::with_loader(folder.join("argument").to_str().expect("text")))
            .expect("write");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("mode");
        let status = std::process::Command::new(&program).arg(&made).status().expect("run");
        assert!(status.success() && made.exists());
        std::fs::remove_dir_all(folder).expect("remove");
    }
}
