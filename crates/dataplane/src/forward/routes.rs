//! What is counted for each of the served routes.

use std::{collections::BTreeMap, net::IpAddr};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use ebpf_abi::{COUNTED_ROUTES, Count, FORWARD_ROUTE_SHIFT, Origin, ROUTE_COUNTS, route_slot};
use ipnet::IpNet;

use super::Offload;
use crate::{
    DataplaneError,
    tables::{reading, typed, writing},
};

/// Number of a served route in the programs; the first is 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct RouteNumber(pub(super) u8);

impl RouteNumber {
    /// No route that is counted.
    pub(super) const NONE: Self = Self(0);
}

/// The routes that are counted and the map of their counters.
pub(super) struct RouteCounts {
    map: PerCpuArray<MapData, Count>,
    /// `None` until this process has said.
    routes: Option<Vec<IpNet>>,
}

impl RouteCounts {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            map: typed(ebpf, &ROUTE_COUNTS)?,
            routes: None,
        })
    }

    /// Counts for the first of these routes from now on, each from zero; returns whether they are others than
    /// before.
    pub(super) fn set(&mut self, routes: &[IpNet]) -> Result<bool, DataplaneError> {
        let counted = &routes[..routes.len().min(COUNTED_ROUTES as usize - 1)];
        if self.routes.as_deref() == Some(counted) {
            return Ok(false);
        }
        let cpus = nr_cpus()
            .map_err(|(path, error)| DataplaneError::new(format!("reading {path}"), error))?;
        for slot in 0..ROUTE_COUNTS.max_entries {
            PerCpuValues::try_from(vec![Count::default(); cpus])
                .map_err(|error| DataplaneError::new("clearing counters of routes", error))
                .and_then(|zero| {
                    let set = self.map.set(slot, zero, 0);
                    set.map_err(writing(&ROUTE_COUNTS))
                })?;
        }
        self.routes = Some(counted.to_vec());
        Ok(true)
    }

    /// The route that a direction of a flow is counted for: the longest that holds the end behind us.
    pub(super) fn of(&self, offload: &Offload) -> RouteNumber {
        let behind: IpAddr = match offload.key.origin {
            Origin::Overlay => offload.dst.ip(),
            Origin::Lan => offload.key.src.ip(),
        };
        let routes = self.routes.iter().flatten().zip(1u8..);
        routes
            .filter(|(route, _)| route.contains(&behind))
            .max_by_key(|(route, _)| route.prefix_len())
            .map_or(RouteNumber::NONE, |(_, number)| RouteNumber(number))
    }

    /// What was counted for each route, from the overlay and from elsewhere.
    pub(super) fn read(&self) -> Result<BTreeMap<IpNet, [Count; 2]>, DataplaneError> {
        let mut counts = BTreeMap::new();
        for (route, number) in self.routes.iter().flatten().zip(1u16..) {
            let mut sums = [Count::default(); 2];
            for (origin, sum) in Origin::ALL.into_iter().zip(&mut sums) {
                let Some(slot) = route_slot(number << FORWARD_ROUTE_SHIFT, origin) else {
                    continue;
                };
                let per_cpu = self.map.get(&slot, 0).map_err(reading(&ROUTE_COUNTS))?;
                per_cpu.iter().for_each(|count| *sum += *count);
            }
            counts.insert(*route, sums);
        }
        Ok(counts)
    }
}
