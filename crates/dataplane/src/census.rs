//! How full the maps are, and what memory they take: [`Census`].

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use ebpf_abi::{
    ADMITTED_V4, ADMITTED_V6, BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LPM_TRIE,
    BPF_MAP_TYPE_LRU_HASH, BPF_MAP_TYPE_PERCPU_HASH, BUCKETS, Bucket, KEY_V4, KEY_V6, MAPS,
    MapSpec, WAYS,
};

use crate::filter::bulk;

/// How full a map is and what memory it takes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct MapUse {
    /// Entries in use and the most that there can be; `None` for arrays, whose entries are all there always.
    pub entries: Option<(u64, u64)>,
    /// Bytes of kernel memory, as the kernel accounts them.
    pub bytes: u64,
}

/// Asks the kernel about the maps of one attachment, by descriptors of its own.
#[derive(Clone, Debug)]
pub struct Census {
    maps: Arc<Vec<(&'static MapSpec, OwnedFd)>>,
    inner: InnerMaps,
}

/// Entries and bytes of maps, by the name of the outer one and the place in it.
type Known = BTreeMap<(&'static str, u32), (u64, u64)>;

/// What is known of maps inside maps: they are made of the size that they need, and never change.
#[derive(Clone, Debug, Default)]
pub(crate) struct InnerMaps(Arc<Mutex<Known>>);

impl InnerMaps {
    /// Notes a map of so many entries that has been put at `index` of `outer`.
    pub(crate) fn note(&self, outer: &'static str, index: u32, entries: u64, map: BorrowedFd<'_>) {
        let bytes = memory(map).unwrap_or_default();
        self.lock().insert((outer, index), (entries, bytes));
    }

    fn of(&self, outer: &'static str) -> (u64, u64) {
        let maps = self.lock();
        let places = maps.range((outer, 0)..=(outer, u32::MAX));
        places.fold((0, 0), |(entries, bytes), (_, more)| {
            (entries + more.0, bytes + more.1)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Census {
    /// Takes descriptors of all maps of `ebpf`, before others take the maps themselves.
    pub(crate) fn new(ebpf: &Ebpf) -> Self {
        let known = |(name, map)| {
            let spec = MAPS.iter().find(|spec| spec.name == name)?;
            let fd = data(map)?.fd().as_fd().try_clone_to_owned().ok()?;
            Some((spec, fd))
        };
        Self {
            maps: Arc::new(ebpf.maps().filter_map(known).collect()),
            inner: InnerMaps::default(),
        }
    }

    /// Where maps inside maps are noted.
    pub(crate) fn inner(&self) -> InnerMaps {
        self.inner.clone()
    }

    /// Counts, by name of the map. Takes some 20 ms where tables are full, and holds nothing against the programs
    /// for longer than one look-up.
    #[must_use]
    pub fn take(&self) -> BTreeMap<&'static str, MapUse> {
        let maps = self.maps.iter();
        maps.map(|(spec, fd)| (spec.name, self.use_of(spec, fd.as_fd())))
            .collect()
    }

    fn use_of(&self, spec: &MapSpec, fd: BorrowedFd<'_>) -> MapUse {
        let bytes = memory(fd).unwrap_or_default();
        if spec.map_type == BPF_MAP_TYPE_ARRAY_OF_MAPS {
            let (entries, inside) = self.inner.of(spec.name);
            return MapUse {
                // As large as they have to be.
                entries: Some((entries, entries)),
                bytes: bytes + inside,
            };
        }
        let used = entries(spec, fd).unwrap_or_else(|error| {
            tracing::debug!(%error, map = spec.name, "entries not counted");
            None
        });
        MapUse {
            entries: used,
            bytes,
        }
    }
}

fn entries(spec: &MapSpec, fd: BorrowedFd<'_>) -> io::Result<Option<(u64, u64)>> {
    const WORDS_V4: usize = size_of::<Bucket<[u8; KEY_V4]>>() / 8;
    const WORDS_V6: usize = size_of::<Bucket<[u8; KEY_V6]>>() / 8;
    let most = u64::from(spec.max_entries);
    let used = match spec.map_type {
        BPF_MAP_TYPE_HASH
        | BPF_MAP_TYPE_LRU_HASH
        | BPF_MAP_TYPE_PERCPU_HASH
        | BPF_MAP_TYPE_LPM_TRIE => bulk::count_keys(fd, spec.key_size as usize, most)?,
        _ if spec.name == ADMITTED_V4.name => flows::<WORDS_V4>(fd)?,
        _ if spec.name == ADMITTED_V6.name => flows::<WORDS_V6>(fd)?,
        _ => return Ok(None),
    };
    let ways = match spec.name {
        name if name == ADMITTED_V4.name || name == ADMITTED_V6.name => WAYS as u64,
        _ => 1,
    };
    Ok(Some((used, most * ways)))
}

/// Flows in buckets of so many words, which begin with the flows' hashes.
fn flows<const WORDS: usize>(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let buckets: Vec<[u64; WORDS]> = bulk::values(fd, BUCKETS as usize)?;
    let hashes = buckets.iter().flat_map(|bucket| &bucket[..WAYS]);
    Ok(hashes.filter(|hash| **hash != 0).count() as u64)
}

/// Bytes that the kernel says a map takes.
fn memory(map: BorrowedFd<'_>) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).ok()?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("memlock:"))?;
    line.trim().parse().ok()
}

/// What aya keeps of a map, of the kinds that the object has.
fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}
