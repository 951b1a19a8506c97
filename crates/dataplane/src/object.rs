//! The embedded eBPF object: checks it, creates its maps, loads its programs.

use aya::{
    Ebpf, EbpfError, EbpfLoader, Pod,
    maps::MapData,
    programs::{Program, ProgramError, SchedClassifier},
};
use aya_obj::{Map as MapObject, Object, ProgramSection};
use ebpf_abi::{
    ABI_VERSION, ABI_VERSION_SECTION, BPF_MAP_TYPE_LRU_HASH, GLOBAL_FILTER, GLOBAL_VIRTUAL_TIME,
    InnerMapSpec, MAPS, MapSpec, PARTS, PROGRAMS, Part, ProgramKind,
};

use crate::{DataplaneError, pins::Pins};

/// The object as one zstd frame, or nothing if the binary was built without it. What a binary holds plain stays in
/// memory once it was read, six times as much.
static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tailrace.o.zst"));

/// Whether this binary holds an object at all.
#[must_use]
pub fn is_embedded() -> bool {
    !PACKED.is_empty()
}

/// Whether this binary holds the object and the kernel lets this process use eBPF, as far as can be
/// told without loading it.
///
/// # Errors
///
/// [`DataplaneError::EmptyObject`], [`DataplaneError::NotPermitted`], or what else the kernel answered.
pub fn probe() -> Result<(), DataplaneError> {
    if !is_embedded() {
        return Err(DataplaneError::EmptyObject);
    }
    // A kind that is open to nobody without CAP_BPF.
    let object = MapObject::new_from_params(BPF_MAP_TYPE_LRU_HASH, 4, 4, 1, 0);
    MapData::create(object, "probe", None)
        .map(drop)
        .map_err(|error| DataplaneError::new("creating an eBPF map", error))
}

/// The object; empty if the binary was built without it.
fn object() -> Result<Vec<u8>, DataplaneError> {
    if PACKED.is_empty() {
        return Ok(Vec::new());
    }
    zstd::decode_all(PACKED)
        .map_err(|error| DataplaneError::new("unpacking the eBPF object", error))
}

/// What the programs are to do. Each `false` leaves code out that costs time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Features {
    /// Filter, not only count.
    pub(crate) filter: bool,
    /// Take the time from a map.
    pub(crate) virtual_time: bool,
}

/// Creates the object's maps, or takes over the pinned ones, and relocates the programs.
pub(crate) fn load(pins: Option<&Pins>, features: Features) -> Result<Ebpf, DataplaneError> {
    let object = object()?;
    check(&object)?;
    let mut loader = EbpfLoader::new();
    let filter = u32::from(features.filter);
    let virtual_time = u32::from(features.virtual_time);
    loader.override_global(GLOBAL_FILTER, &filter, true);
    loader.override_global(GLOBAL_VIRTUAL_TIME, &virtual_time, true);
    // The BTF of the kernel serves relocations that Rust programs do not have.
    loader.btf(None);
    if let Some(pins) = pins {
        for map in &MAPS {
            loader.map_pin_path(map.name, pins.map(map));
        }
    }
    let others = || PARTS.iter().flat_map(|part| part.maps);
    for map in others() {
        loader.map_max_entries(map.name, 1);
    }
    let mut ebpf = loader.load(&object).map_err(not_loaded)?;
    // Of the parts that are loaded by themselves no program is loaded here.
    for map in others() {
        drop(ebpf.take_map(map.name));
    }
    Ok(ebpf)
}

/// As [`load`], for one part: the other maps of the object are made as small as they can be. Once the
/// programs are loaded [`close_maps`] closes those, and nothing remains of them.
/// The constant `global` is what the part is told.
pub(crate) fn load_part<T: Pod>(
    part: &Part,
    pins: Option<&Pins>,
    virtual_time: bool,
    (global, value): (&str, &T),
) -> Result<Ebpf, DataplaneError> {
    let object = object()?;
    check(&object)?;
    let mut loader = EbpfLoader::new();
    loader.override_global(GLOBAL_FILTER, &0u32, true);
    let time = if virtual_time { &1u32 } else { &0u32 };
    loader.override_global(GLOBAL_VIRTUAL_TIME, time, true);
    loader.override_global(global, value, true);
    loader.btf(None);
    for map in MAPS.iter().chain(PARTS.iter().flat_map(|part| part.maps)) {
        if !part.maps.contains(map) {
            loader.map_max_entries(map.name, 1);
        } else if let Some(pins) = pins {
            loader.map_pin_path(map.name, pins.map(map));
        }
    }
    loader.load(&object).map_err(not_loaded)
}

/// Closes all maps that have not been taken. Loaded programs keep those that they use.
pub(crate) fn close_maps(ebpf: &mut Ebpf) {
    let names: Vec<String> = ebpf.maps().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        drop(ebpf.take_map(&name));
    }
}

fn not_loaded(error: EbpfError) -> DataplaneError {
    match error {
        EbpfError::ParseError(error) => bad("it cannot be parsed", error),
        EbpfError::RelocationError(error) => bad("its programs cannot be relocated", error),
        error => DataplaneError::new("creating the eBPF maps", error),
    }
}

/// Hands program `name` of the object to the verifier, once, and returns it, ready to be attached.
pub(crate) fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, DataplaneError> {
    let program: &mut SchedClassifier = unloaded(ebpf, name)?;
    if program.fd().is_err() {
        program
            .load()
            .map_err(|error| DataplaneError::loading(name, error))?;
    }
    Ok(program)
}

/// Returns program `name`, which the kernel may not know yet.
pub(crate) fn unloaded<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut P, DataplaneError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
    program
        .try_into()
        .map_err(|error| bad(&format!("{name} is of another kind"), error))
}

/// Compares an object file with what `ebpf-abi` says of it, before the kernel hears of it.
fn check(bytes: &[u8]) -> Result<(), DataplaneError> {
    if bytes.is_empty() {
        return Err(DataplaneError::EmptyObject);
    }
    check_parsed(&Object::parse(bytes).map_err(|error| bad("it cannot be parsed", error))?)
}

fn check_parsed(object: &Object) -> Result<(), DataplaneError> {
    let version = object
        .maps
        .get(ABI_VERSION_SECTION)
        .and_then(|section| section.data().first_chunk::<4>())
        .ok_or_else(|| missing(ABI_VERSION_SECTION))?;
    let found = u32::from_le_bytes(*version);
    if found != ABI_VERSION {
        return Err(DataplaneError::AbiMismatch {
            found,
            expected: ABI_VERSION,
        });
    }
    let overlay = PROGRAMS.map(|name| (name, ProgramKind::Classifier));
    let parts = PARTS.iter().flat_map(|part| part.programs);
    for (name, kind) in overlay.iter().chain(parts) {
        let program = object.programs.get(*name).ok_or_else(|| missing(name))?;
        let found = match program.section {
            ProgramSection::SchedClassifier => Some(ProgramKind::Classifier),
            ProgramSection::Xdp { .. } => Some(ProgramKind::Xdp),
            ProgramSection::SkLookup => Some(ProgramKind::SkLookup),
            _ => None,
        };
        if found != Some(*kind) {
            return Err(damaged(format!("{name} is no {kind:?} program")));
        }
    }
    for expected in MAPS
        .iter()
        .chain(PARTS.iter().flat_map(|part| part.maps))
        .copied()
    {
        let map = object
            .maps
            .get(expected.name)
            .ok_or_else(|| missing(expected.name))?;
        let found = MapSpec {
            name: expected.name,
            map_type: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: map.max_entries(),
            flags: map.map_flags(),
            inner: map.inner().map(|inner| InnerMapSpec {
                map_type: inner.map_type(),
                key_size: inner.key_size(),
                value_size: inner.value_size(),
                flags: inner.map_flags(),
            }),
        };
        if found != expected {
            return Err(damaged(format!("{found:?} instead of {expected:?}")));
        }
    }
    Ok(())
}

/// Says that the object lacks `name`.
pub(crate) fn missing(name: &str) -> DataplaneError {
    damaged(format!("{name} is missing"))
}

fn damaged(what: String) -> DataplaneError {
    DataplaneError::BadObject { what, source: None }
}

fn bad(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> DataplaneError {
    DataplaneError::BadObject {
        what: what.to_owned(),
        source: Some(Box::new(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The built object, or a line that says why the test cannot run.
    fn built(test: &str) -> Option<Object> {
        if is_embedded() {
            return Some(Object::parse(&object().unwrap()).unwrap());
        }
        println!("SKIP {test}: no eBPF object; run `cargo xtask build-ebpf`");
        None
    }

    #[test]
    fn the_built_object_holds_every_program_and_map_of_the_abi() {
        let Some(object) =
            built("dataplane::the_built_object_holds_every_program_and_map_of_the_abi")
        else {
            return;
        };
        check_parsed(&object).unwrap();
        assert_eq!(object.license.to_bytes(), b"Dual MIT/GPL");
    }

    #[test]
    fn an_object_of_another_version_is_refused() {
        let Some(mut object) = built("dataplane::an_object_of_another_version_is_refused") else {
            return;
        };
        let section = object.maps.get_mut(ABI_VERSION_SECTION).unwrap();
        *section.data_mut() = (ABI_VERSION + 1).to_le_bytes().to_vec();
        let error = check_parsed(&object).unwrap_err();
        assert!(
            matches!(error, DataplaneError::AbiMismatch { found, .. } if found == ABI_VERSION + 1),
            "{error:?}"
        );
    }

    #[test]
    fn an_object_with_another_layout_is_refused() {
        let Some(mut object) = built("dataplane::an_object_with_another_layout_is_refused") else {
            return;
        };
        let map = object.maps.get_mut(ebpf_abi::TOTALS.name).unwrap();
        map.set_value_size(8);
        assert!(matches!(
            check_parsed(&object),
            Err(DataplaneError::BadObject { .. })
        ));
        object.maps.remove(ebpf_abi::TOTALS.name);
        let error = check_parsed(&object).unwrap_err();
        assert!(error.to_string().contains("TOTALS is missing"), "{error}");
    }

    #[test]
    fn an_empty_object_says_how_to_build_one() {
        let error = check(&[]).unwrap_err();
        assert!(error.to_string().contains("cargo xtask build-ebpf"));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(matches!(
            check(b"not an ELF file"),
            Err(DataplaneError::BadObject { .. })
        ));
    }
}
