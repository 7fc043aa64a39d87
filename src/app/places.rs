//! Who may hold a connection: places in all, a share for each address, a few more for the machine itself. When
//! there is no place left, the connection that has been still the longest gives up its own.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::progress::Progress;

/// A connection may be still this long before it gives up its place to another.
const STILL: Duration = Duration::from_secs(1);
/// Between two looks for a connection that has become still.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The numbers of places.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub all: usize,
    /// Of one address; 0 = any number.
    pub per_address: usize,
    /// Further ones for connections from this machine.
    pub reserve: usize,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// By number: older ones first.
    connections: HashMap<u64, Connection>,
}

#[derive(Clone, Debug)]
struct Connection {
    network: IpAddr,
    progress: Arc<Progress>,
    close: CancellationToken,
}

/// All places of a listener.
#[derive(Debug)]
pub struct Places {
    sizes: Sizes,
    held: Mutex<Held>,
    freed: Notify,
}

/// A place of one connection; dropping it frees the place.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    number: u64,
    /// Cancelled when somebody else needs the place.
    pub close: CancellationToken,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.held().connections.remove(&self.number);
        self.places.freed.notify_waiters();
    }
}

/// Of IPv6 the /64, which one household or machine has to itself.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        other => other,
    }
}

impl Places {
    pub fn new(sizes: Sizes) -> Arc<Self> {
        Arc::new(Self { sizes, held: Mutex::default(), freed: Notify::new() })
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from `peer`, or `None` when none has become free within `patience`.
    pub async fn take(self: &Arc<Self>, peer: IpAddr, progress: &Arc<Progress>, patience: Duration) -> Option<Place> {
        let end = tokio::time::Instant::now() + patience;
        loop {
            let freed = self.freed.notified();
            if let Some(place) = self.try_take(peer, progress) {
                return Some(place);
            }
            if tokio::time::Instant::now() >= end {
                return None;
            }
            tokio::select! {
                () = freed => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    fn try_take(self: &Arc<Self>, peer: IpAddr, progress: &Arc<Progress>) -> Option<Place> {
        let Sizes { all, per_address, reserve } = self.sizes;
        let network = network(peer);
        let mut held = self.held();
        let own = held.connections.values().filter(|c| c.network == network).count();
        let share_used = per_address > 0 && own >= per_address;
        let most = all + if network.is_loopback() { reserve } else { 0 };
        if share_used || held.connections.len() >= most {
            // Of the same address where its share is used up: nobody loses a place to a crowd elsewhere.
            let candidates = held.connections.values().filter(|c| !share_used || c.network == network);
            let still = candidates.filter(|c| !c.close.is_cancelled()).filter_map(|c| Some((c.progress.still()?, c)));
            if let Some((_, victim)) = still.filter(|(time, _)| *time >= STILL).max_by_key(|(time, _)| *time) {
                victim.close.cancel();
            }
            return None;
        }
        let number = held.next;
        held.next += 1;
        let close = CancellationToken::new();
        held.connections.insert(number, Connection { network, progress: progress.clone(), close: close.clone() });
        Some(Place { places: self.clone(), number, close })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn an_address_has_its_share_and_the_machine_its_reserve() {
        let places = Places::new(Sizes { all: 4, per_address: 2, reserve: 1 });
        // Each has a request open: none is still.
        let busy = || {
            let progress = Progress::new();
            let open = progress.request();
            (progress, open)
        };
        let taken = |peer: &str, progress: &Arc<Progress>| places.try_take(from(peer), progress);
        let many: Vec<_> = (0..8).map(|_| busy()).collect();
        let a = taken("10.0.0.1", &many[0].0).unwrap();
        let _b = taken("10.0.0.1", &many[1].0).unwrap();
        assert!(taken("10.0.0.1", &many[2].0).is_none(), "its share is used");
        let _c = taken("2001:db8::1", &many[3].0).unwrap();
        let _d = taken("2001:db8::2", &many[4].0).unwrap();
        assert!(taken("2001:db8::3", &many[5].0).is_none(), "one /64 is one address");
        assert!(taken("10.0.0.2", &many[5].0).is_none(), "all places are taken");
        let _operator = taken("127.0.0.1", &many[6].0).expect("the reserve");
        assert!(taken("127.0.0.1", &many[7].0).is_none());
        drop(a);
        assert!(taken("10.0.0.2", &many[5].0).is_none(), "the operator's place counts");
    }

    #[tokio::test]
    async fn the_one_that_was_still_longest_gives_way() {
        let places = Places::new(Sizes { all: 2, per_address: 0, reserve: 0 });
        let (first, second) = (Progress::new(), Progress::new());
        let _open = second.request();
        let place = places.take(from("10.0.0.1"), &first, Duration::ZERO).await.unwrap();
        let _busy = places.take(from("10.0.0.2"), &second, Duration::ZERO).await.unwrap();
        let closes = place.close.clone();
        tokio::spawn(async move {
            place.close.cancelled().await;
            drop(place);
        });
        let third = Progress::new();
        assert!(places.take(from("10.0.0.3"), &third, Duration::from_secs(5)).await.is_some());
        assert!(closes.is_cancelled());
    }
}
