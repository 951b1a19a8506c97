//! What every BPF object has to bring along: licence, version, panic handler.
#![expect(unsafe_code, reason = "link sections")]

use ebpf_abi::ABI_VERSION;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Compared by the loader before anything is loaded.
#[unsafe(link_section = ".rodata.abi")]
#[unsafe(no_mangle)]
static OBJECT_ABI_VERSION: [u8; 4] = ABI_VERSION.to_le_bytes();
const _: () = assert!(matches!(
    ebpf_abi::ABI_VERSION_SECTION.as_bytes(),
    b".rodata.abi"
));

/// Never reached: the verifier refuses programs in which it could be, for its endless loop.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
