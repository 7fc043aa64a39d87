//! Admission of connections: a number in total, a share for each address, a few more for the machine itself. When all
//! are in use, the connection that has been idle the longest is closed.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::progress::Progress;

/// A connection that has been idle for less than this is not closed to admit another.
const MIN_IDLE: Duration = Duration::from_secs(1);
/// Interval of checks for a connection that has become idle.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Limits on the number of connections.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub all: usize,
    /// Connections of one address; 0 = any number.
    pub per_address: usize,
    /// Additional connections from this machine.
    pub reserve: usize,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// By sequence number: oldest first.
    connections: HashMap<u64, Connection>,
}

#[derive(Clone, Debug)]
struct Connection {
    network: IpAddr,
    progress: Arc<Progress>,
    close: CancellationToken,
}

/// The admitted connections of a listener.
#[derive(Debug)]
pub struct Slots {
    sizes: Sizes,
    held: Mutex<Held>,
    freed: Notify,
}

/// One admitted connection; dropping it frees its slot.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    number: u64,
    /// Cancelled when another connection needs the slot.
    pub close: CancellationToken,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.held().connections.remove(&self.number);
        self.slots.freed.notify_waiters();
    }
}

/// The address that limits apply to: of IPv6 the /64, which belongs to one household or machine.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        other => other,
    }
}

impl Slots {
    pub fn new(sizes: Sizes) -> Arc<Self> {
        Arc::new(Self { sizes, held: Mutex::default(), freed: Notify::new() })
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for a connection from `peer`, or `None` when none has become free within `patience`.
    pub async fn take(self: &Arc<Self>, peer: IpAddr, progress: &Arc<Progress>, patience: Duration) -> Option<Slot> {
        let end = tokio::time::Instant::now() + patience;
        loop {
            let freed = self.freed.notified();
            if let Some(slot) = self.try_take(peer, progress) {
                return Some(slot);
            }
            if tokio::time::Instant::now() >= end {
                return None;
            }
            tokio::select! {
                () = freed => {}
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
        }
    }

    fn try_take(self: &Arc<Self>, peer: IpAddr, progress: &Arc<Progress>) -> Option<Slot> {
        let Sizes { all, per_address, reserve } = self.sizes;
        let network = network(peer);
        let mut held = self.held();
        let own = held.connections.values().filter(|c| c.network == network).count();
        let share_used = per_address > 0 && own >= per_address;
        let most = all + if network.is_loopback() { reserve } else { 0 };
        if share_used || held.connections.len() >= most {
            // When the address has used up its share, one of its own connections is closed: many connections of one
            // address cannot displace those of others.
            let candidates = held.connections.values().filter(|c| !share_used || c.network == network);
            let still =
                candidates.filter(|c| !c.close.is_cancelled()).filter_map(|c| Some((c.progress.inactive()?, c)));
            if let Some((_, victim)) = still.filter(|(time, _)| *time >= MIN_IDLE).max_by_key(|(time, _)| *time) {
                victim.close.cancel();
            }
            return None;
        }
        let number = held.next;
        held.next += 1;
        let close = CancellationToken::new();
        held.connections.insert(number, Connection { network, progress: progress.clone(), close: close.clone() });
        Some(Slot { slots: self.clone(), number, close })
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
        let slots = Slots::new(Sizes { all: 4, per_address: 2, reserve: 1 });
        // Each has a request open: none is still.
        let busy = || {
            let progress = Progress::new();
            let open = progress.request();
            (progress, open)
        };
        let taken = |peer: &str, progress: &Arc<Progress>| slots.try_take(from(peer), progress);
        let many: Vec<_> = (0..8).map(|_| busy()).collect();
        let a = taken("10.0.0.1", &many[0].0).unwrap();
        let _b = taken("10.0.0.1", &many[1].0).unwrap();
        assert!(taken("10.0.0.1", &many[2].0).is_none(), "its share is used");
        let _c = taken("2001:db8::1", &many[3].0).unwrap();
        let _d = taken("2001:db8::2", &many[4].0).unwrap();
        assert!(taken("2001:db8::3", &many[5].0).is_none(), "one /64 is one address");
        assert!(taken("10.0.0.2", &many[5].0).is_none(), "all slots are taken");
        let _operator = taken("127.0.0.1", &many[6].0).expect("the reserve");
        assert!(taken("127.0.0.1", &many[7].0).is_none());
        drop(a);
        assert!(taken("10.0.0.2", &many[5].0).is_none(), "the operator's slot counts");
    }

    #[tokio::test]
    async fn the_connection_idle_the_longest_is_closed() {
        let slots = Slots::new(Sizes { all: 2, per_address: 0, reserve: 0 });
        let (first, second) = (Progress::new(), Progress::new());
        let _open = second.request();
        let slot = slots.take(from("10.0.0.1"), &first, Duration::ZERO).await.unwrap();
        let _busy = slots.take(from("10.0.0.2"), &second, Duration::ZERO).await.unwrap();
        let closes = slot.close.clone();
        tokio::spawn(async move {
            slot.close.cancelled().await;
            drop(slot);
        });
        let third = Progress::new();
        assert!(slots.take(from("10.0.0.3"), &third, Duration::from_secs(5)).await.is_some());
        assert!(closes.is_cancelled());
    }
}
