//! Map system calls that aya does not offer: many entries at once, and maps inside maps by number.
#![expect(unsafe_code, reason = "system calls")]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya::Pod;

/// `BPF_MAP_LOOKUP_ELEM` in `linux/bpf.h`.
const MAP_LOOKUP_ELEM: libc::c_long = 1;
/// `BPF_MAP_GET_NEXT_KEY` in `linux/bpf.h`.
const MAP_GET_NEXT_KEY: libc::c_long = 4;
/// `BPF_MAP_UPDATE_ELEM` in `linux/bpf.h`.
const MAP_UPDATE_ELEM: libc::c_long = 2;
/// `BPF_MAP_LOOKUP_BATCH` in `linux/bpf.h`.
const MAP_LOOKUP_BATCH: libc::c_long = 24;
/// `BPF_MAP_UPDATE_BATCH` in `linux/bpf.h`.
const MAP_UPDATE_BATCH: libc::c_long = 26;

/// The part of `union bpf_attr` for `BPF_MAP_LOOKUP_BATCH` and `BPF_MAP_UPDATE_BATCH`.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for system calls that concern one element; of `BPF_MAP_GET_NEXT_KEY`, `value` is
/// the next key.
#[repr(C)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Writes `values` under `keys`, which are as many; all in one system call (Linux 5.6).
pub(super) fn update<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    assert_eq!(keys.len(), values.len(), "each key has its value");
    if keys.is_empty() {
        return Ok(());
    }
    let count = u32::try_from(keys.len()).map_err(io::Error::other)?;
    let mut batch = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `count` keys and values, plain data as large as the map's, live through the call.
    unsafe { call(MAP_UPDATE_BATCH, &mut batch) }
}

/// Returns the first `len` values of an array; all in one system call (Linux 5.6).
pub(crate) fn values<V: Pod>(map: BorrowedFd<'_>, len: usize) -> io::Result<Vec<V>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let count = u32::try_from(len).map_err(io::Error::other)?;
    let mut keys = vec![0u32; len];
    let mut values: Vec<V> = Vec::with_capacity(len);
    let mut next = 0u32;
    let mut batch = Batch {
        in_batch: 0,
        out_batch: (&raw mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: there is room for `count` keys and values, as large as the map's, and for a key at
    // `out_batch`; all of it lives through the call.
    match unsafe { call(MAP_LOOKUP_BATCH, &mut batch) } {
        Ok(()) => {}
        // The end of the map, which has no more values than these.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let read = len.min(batch.count as usize);
    // SAFETY: the kernel has written so many values, plain data.
    unsafe { values.set_len(read) };
    Ok(values)
}

/// Counts the entries of a table with keys of `key_size` bytes, `most` at most: where entries come and go
/// meanwhile, the kernel may begin anew.
pub(crate) fn count_keys(map: BorrowedFd<'_>, key_size: usize, most: u64) -> io::Result<u64> {
    let (mut key, mut next) = (vec![0u8; key_size], vec![0u8; key_size]);
    let mut count = 0;
    while count < most {
        let mut element = Element {
            map_fd: map.as_raw_fd() as u32,
            padding: 0,
            // No key: the first.
            key: if count == 0 { 0 } else { key.as_ptr() as u64 },
            value: next.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: both keys are as large as the map's and live through the call.
        match unsafe { call(MAP_GET_NEXT_KEY, &mut element) } {
            Ok(()) => count += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
        std::mem::swap(&mut key, &mut next);
    }
    Ok(count)
}

/// Puts the map with the descriptor `inner` at `index` of an array of maps.
pub(super) fn set_inner_map(
    outer: BorrowedFd<'_>,
    index: u32,
    inner: BorrowedFd<'_>,
) -> io::Result<()> {
    let inner = inner.as_raw_fd() as u32;
    let mut element = Element {
        map_fd: outer.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const index) as u64,
        value: (&raw const inner) as u64,
        flags: 0,
    };
    // SAFETY: key and value are `u32`, as in every array of maps, and live through the call.
    unsafe { call(MAP_UPDATE_ELEM, &mut element) }
}

/// Returns the kernel's number of the map at `index` of an array of maps.
pub(super) fn inner_map_id(outer: BorrowedFd<'_>, index: u32) -> io::Result<Option<u32>> {
    let mut id = 0u32;
    let mut element = Element {
        map_fd: outer.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const index) as u64,
        value: (&raw mut id) as u64,
        flags: 0,
    };
    // SAFETY: key and value are `u32`, as in every array of maps, and live through the call.
    match unsafe { call(MAP_LOOKUP_ELEM, &mut element) } {
        Ok(()) => Ok(Some(id)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// # Safety
///
/// `attributes` is what the kernel expects for `command`, pointers in it included.
unsafe fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<()> {
    // SAFETY: by the caller's promise; the size is that of `attributes`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
