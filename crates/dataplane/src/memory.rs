//! The memory that loading takes, given back.
//!
//! aya's loader parses the BTF of the whole kernel, some 20 MB at its peak, though these programs need
//! none of it. glibc would keep that: having seen large blocks freed it raises its thresholds, by
//! itself, to twice their size (mallopt(3), `M_MMAP_THRESHOLD`), takes the next ones from a thread's
//! heap instead of mapping them, and holds on to them there. A node that went down and up again a few
//! times would be four times as large as before.

/// Below this a block is taken from the heap, above it is mapped and unmapped; glibc's own first value.
#[cfg(target_env = "gnu")]
const THRESHOLD: libc::c_int = 128 << 10;

/// Runs `load` and gives back what it took beyond its result. Thresholds stay fixed from then on.
pub(crate) fn contained<T>(load: impl FnOnce() -> T) -> T {
    fix_thresholds();
    let loaded = load();
    give_back();
    loaded
}

fn fix_thresholds() {
    #[cfg(target_env = "gnu")]
    for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: takes two numbers and no pointers; the allocator locks itself (mallopt(3)).
        let set = unsafe { libc::mallopt(parameter, THRESHOLD) };
        if set == 0 {
            tracing::debug!(parameter, "the allocator keeps its own threshold");
        }
    }
}

fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number and no pointers, and may be called from any thread (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
