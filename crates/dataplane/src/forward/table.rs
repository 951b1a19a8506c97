//! The forward table in the kernel.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, MapData},
};
use ebpf_abi::{
    FORWARD_ENDED, FORWARD_ROUTE_SHIFT, FORWARD_V4, FORWARD_V6, Forward, ForwardKey, MapSpec,
    Nanos, Origin,
};

use super::{Offload, OffloadKey, routes::RouteNumber};
use crate::{
    DataplaneError,
    peer::boot_clock,
    tables::{gone, reading, typed, write},
};

/// The maps, by family.
pub(crate) struct Table {
    v4: HashMap<MapData, ForwardKey<[u8; 4]>, Forward<[u8; 4]>>,
    v6: HashMap<MapData, ForwardKey<[u8; 16]>, Forward<[u8; 16]>>,
}

/// A key of either family.
enum Key {
    V4(ForwardKey<[u8; 4]>),
    V6(ForwardKey<[u8; 16]>),
}

impl Table {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            v4: typed(ebpf, &FORWARD_V4)?,
            v6: typed(ebpf, &FORWARD_V6)?,
        })
    }

    /// Makes an entry whose flow has just been seen by the stack, and is counted for a route.
    pub(super) fn insert(
        &mut self,
        offload: &Offload,
        route: RouteNumber,
    ) -> Result<(), DataplaneError> {
        let now = boot_clock().as_nanos();
        self.insert_for(offload, route, Nanos::try_from(now).unwrap_or(Nanos::MAX))
    }

    /// Makes an entry whose flow was seen by the stack at `stacked`.
    pub(crate) fn insert_at(
        &mut self,
        offload: &Offload,
        stacked: Nanos,
    ) -> Result<(), DataplaneError> {
        self.insert_for(offload, RouteNumber::NONE, stacked)
    }

    fn insert_for(
        &mut self,
        offload: &Offload,
        route: RouteNumber,
        stacked: Nanos,
    ) -> Result<(), DataplaneError> {
        let addresses = (offload.src.ip(), offload.dst.ip());
        match (key(&offload.key)?, addresses) {
            (Key::V4(key), (IpAddr::V4(src), IpAddr::V4(dst))) => {
                let value = value(offload, (src.octets(), dst.octets()), route, stacked);
                write(&FORWARD_V4, || self.v4.insert(key, value, 0))
            }
            (Key::V6(key), (IpAddr::V6(src), IpAddr::V6(dst))) => {
                let value = value(offload, (src.octets(), dst.octets()), route, stacked);
                write(&FORWARD_V6, || self.v6.insert(key, value, 0))
            }
            _ => Err(DataplaneError::MixedFamilies),
        }
    }

    /// Has the flows counted for the routes that `of` says.
    pub(super) fn renumber(
        &mut self,
        of: impl Fn(&Offload) -> RouteNumber,
    ) -> Result<(), DataplaneError> {
        renumber(&mut self.v4, &FORWARD_V4, &of)?;
        renumber(&mut self.v6, &FORWARD_V6, &of)
    }

    pub(super) fn remove(&mut self, offload: &OffloadKey) -> Result<(), DataplaneError> {
        match key(offload)? {
            Key::V4(key) => gone(self.v4.remove(&key), &FORWARD_V4),
            Key::V6(key) => gone(self.v6.remove(&key), &FORWARD_V6),
        }
    }

    pub(super) fn clear(&mut self) -> Result<(), DataplaneError> {
        clear(&mut self.v4, &FORWARD_V4)?;
        clear(&mut self.v6, &FORWARD_V6)
    }

    pub(crate) fn dump(&self) -> Result<Vec<Offload>, DataplaneError> {
        let mut dump = Vec::new();
        for entry in self.v4.iter() {
            let (key, value) = entry.map_err(reading(&FORWARD_V4))?;
            dump.extend(offload(&key, &value));
        }
        for entry in self.v6.iter() {
            let (key, value) = entry.map_err(reading(&FORWARD_V6))?;
            dump.extend(offload(&key, &value));
        }
        Ok(dump)
    }
}

fn clear<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    spec: &'static MapSpec,
) -> Result<(), DataplaneError> {
    let keys: Vec<K> = map
        .keys()
        .collect::<Result<_, _>>()
        .map_err(reading(spec))?;
    for key in keys {
        gone(map.remove(&key), spec)?;
    }
    Ok(())
}

fn renumber<A: Copy + Into<IpAddr>>(
    map: &mut HashMap<MapData, ForwardKey<A>, Forward<A>>,
    spec: &'static MapSpec,
    of: &impl Fn(&Offload) -> RouteNumber,
) -> Result<(), DataplaneError>
where
    ForwardKey<A>: Pod,
    Forward<A>: Pod,
{
    let entries: Vec<_> = map
        .iter()
        .collect::<Result<_, _>>()
        .map_err(reading(spec))?;
    for (key, entry) in entries {
        let Some(offload) = offload(&key, &entry) else {
            continue;
        };
        let flags = flags(of(&offload));
        if flags != entry.flags {
            write(spec, || map.insert(key, Forward { flags, ..entry }, 0))?;
        }
    }
    Ok(())
}

fn flags(RouteNumber(route): RouteNumber) -> u16 {
    u16::from(route) << FORWARD_ROUTE_SHIFT
}

fn key(offload: &OffloadKey) -> Result<Key, DataplaneError> {
    let (src_port, dst_port) = (offload.src.port(), offload.dst.port());
    macro_rules! key {
        ($src:expr, $dst:expr) => {
            ForwardKey {
                src: $src.octets(),
                dst: $dst.octets(),
                src_port: src_port.to_be_bytes(),
                dst_port: dst_port.to_be_bytes(),
                protocol: offload.protocol,
                origin: offload.origin as u8,
                padding: [0; 2],
            }
        };
    }
    match (offload.src.ip(), offload.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Ok(Key::V4(key!(src, dst))),
        (IpAddr::V6(src), IpAddr::V6(dst)) => Ok(Key::V6(key!(src, dst))),
        _ => Err(DataplaneError::MixedFamilies),
    }
}

fn value<A>(
    offload: &Offload,
    (src, dst): (A, A),
    route: RouteNumber,
    stacked: Nanos,
) -> Forward<A> {
    Forward {
        src,
        dst,
        src_port: offload.src.port().to_be_bytes(),
        dst_port: offload.dst.port().to_be_bytes(),
        ifindex: offload.out,
        mtu: offload.mtu,
        flags: flags(route),
        idle: u32::try_from(offload.idle.as_secs()).unwrap_or(u32::MAX),
        stacked,
    }
}

/// What an entry says, unless its flow has ended.
fn offload<A: Copy + Into<IpAddr>>(key: &ForwardKey<A>, value: &Forward<A>) -> Option<Offload> {
    let end = |address: A, port| SocketAddr::new(address.into(), u16::from_be_bytes(port));
    (value.flags & FORWARD_ENDED == 0).then(|| Offload {
        key: OffloadKey {
            origin: if key.origin == Origin::Overlay as u8 {
                Origin::Overlay
            } else {
                Origin::Lan
            },
            protocol: key.protocol,
            src: end(key.src, key.src_port),
            dst: end(key.dst, key.dst_port),
        },
        src: end(value.src, value.src_port),
        dst: end(value.dst, value.dst_port),
        out: value.ifindex,
        mtu: value.mtu,
        idle: Duration::from_secs(value.idle.into()),
    })
}
