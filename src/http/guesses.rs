//! Rate limit of wrong keys, invites and links, by address and over all addresses.
//!
//! Generated keys are 256 random bits and cannot be guessed, so a valid one is never refused, and neither is a session.
//! The configured admin key was chosen by a person. An address with too many wrong attempts may try it only after a
//! wait that doubles each time; the same holds for all addresses together, except those that have used it before.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::peer::network;

/// The limit of all addresses together, as a multiple of one address's.
const ALL: u32 = 20;
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Most wrong keys remembered for an address.
const MARKS: usize = 16;
/// Most addresses remembered.
const MOST_ADDRESSES: usize = 20_000;

/// The counters of this process; each server counts for itself.
pub struct Guesses {
    /// 0 = not counted.
    per_minute: u32,
    table: Mutex<Table>,
}

struct Table {
    addresses: HashMap<String, Counter>,
    all: Counter,
}

struct Counter {
    /// Wrong attempts left, as of `at`.
    left: f64,
    at: Instant,
    /// Attempts since none was left, and when the next is allowed.
    over: u32,
    next: Instant,
    /// The latest wrong keys, to recognize one that a client sends repeatedly.
    marks: Vec<u64>,
    /// Whether the configured key has been used from this address.
    known: bool,
}

impl Counter {
    fn new(most: u32, now: Instant) -> Self {
        Self { left: f64::from(most), at: now, over: 0, next: now, marks: Vec::new(), known: false }
    }

    fn refill(&mut self, most: u32, now: Instant) {
        let most = f64::from(most);
        let minutes = now.saturating_duration_since(self.at).as_secs_f64() / 60.0;
        self.left = (self.left + minutes * most).min(most);
        self.at = now;
        if self.left >= most {
            self.over = 0;
        }
    }

    /// Counts a wrong attempt; waiting begins when none is left.
    fn spend(&mut self, now: Instant) {
        self.left = (self.left - 1.0).max(0.0);
        if self.left < 1.0 && self.over == 0 {
            self.wait(now);
        }
    }

    fn wait(&mut self, now: Instant) {
        self.next = now + LONGEST_WAIT.min(Duration::from_secs(1 << self.over.min(10)));
        self.over += 1;
    }

    /// Allows an attempt beyond the limit, or returns how long to wait for it.
    fn turn(&mut self, now: Instant) -> Result<(), Duration> {
        if now < self.next {
            return Err(self.next - now);
        }
        self.wait(now);
        Ok(())
    }
}

impl Guesses {
    pub fn new(per_minute: u32) -> Self {
        let all = Counter::new(per_minute.saturating_mul(ALL), Instant::now());
        Self { per_minute, table: Mutex::new(Table { addresses: HashMap::new(), all }) }
    }

    /// Whether a secret that is not in the store may be compared with the configured key now.
    ///
    /// # Errors
    /// The time to wait.
    pub fn may_try(&self, from: Option<IpAddr>) -> Result<(), Duration> {
        self.with(from, Instant::now(), |counter, all, now| {
            if counter.left < 1.0 {
                return counter.turn(now);
            }
            if all.left < 1.0 && !counter.known { all.turn(now) } else { Ok(()) }
        })
        .unwrap_or(Ok(()))
    }

    /// Counts a wrong attempt. With a `mark`, a repeated key is not counted, because clients of open routes send the
    /// same arbitrary key with every request.
    pub fn wrong(&self, from: Option<IpAddr>, mark: Option<u64>) {
        self.with(from, Instant::now(), |counter, all, now| {
            if let Some(mark) = mark {
                if counter.marks.contains(&mark) {
                    return;
                }
                if counter.marks.len() == MARKS {
                    counter.marks.remove(0);
                }
                counter.marks.push(mark);
            }
            counter.spend(now);
            all.spend(now);
        });
    }

    /// Records that the configured key was used from this address, which exempts it from the common limit.
    pub fn right(&self, from: Option<IpAddr>) {
        self.with(from, Instant::now(), |counter, _, _| counter.known = true);
    }

    fn with<T>(
        &self,
        from: Option<IpAddr>,
        now: Instant,
        work: impl FnOnce(&mut Counter, &mut Counter, Instant) -> T,
    ) -> Option<T> {
        let from = network(from.filter(|_| self.per_minute > 0)?);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Table { addresses, all } = &mut *table;
        if addresses.len() >= MOST_ADDRESSES && !addresses.contains_key(&from) {
            for counter in addresses.values_mut() {
                counter.refill(self.per_minute, now);
            }
            // Counters without recent attempts are removed. A flood from more addresses is limited by the common
            // counter.
            addresses.retain(|_, c| c.left < f64::from(self.per_minute) || c.known);
            if addresses.len() >= MOST_ADDRESSES {
                addresses.clear();
            }
        }
        let counter = addresses.entry(from).or_insert_with(|| Counter::new(self.per_minute, now));
        counter.refill(self.per_minute, now);
        all.refill(self.per_minute.saturating_mul(ALL), now);
        Some(work(counter, all, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> Option<IpAddr> {
        Some(IpAddr::from([10, (n >> 16) as u8, (n >> 8) as u8, n as u8]))
    }

    #[test]
    fn waits_double_for_the_address_that_was_wrong() {
        let guesses = Guesses::new(3);
        for _ in 0..3 {
            guesses.may_try(address(1)).expect("within the limit");
            guesses.wrong(address(1), None);
        }
        let first = guesses.may_try(address(1)).expect_err("too early");
        assert!(first <= Duration::from_secs(1), "{first:?}");
        guesses.may_try(address(2)).expect("another address");
        let mut counter = Counter::new(3, Instant::now());
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..7 {
            counter.left = 1.0;
            if waits.is_empty() {
                counter.spend(now);
            }
            let wait = counter.turn(now).expect_err("the next is later");
            waits.push(wait.as_secs());
            now += wait;
            counter.turn(now).expect("its turn");
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn many_addresses_together_are_slowed_and_those_that_knew_the_key_are_not() {
        let guesses = Guesses::new(2);
        guesses.right(address(0));
        for n in 1..=2 * ALL {
            guesses.may_try(address(n)).expect("within both limits");
            guesses.wrong(address(n), None);
        }
        guesses.may_try(address(1001)).expect_err("a new address finds the common counter used up");
        guesses.may_try(address(0)).expect("known before");
    }

    #[test]
    fn a_made_up_key_counts_once_where_none_is_asked_for() {
        let guesses = Guesses::new(2);
        for _ in 0..100 {
            guesses.wrong(address(1), Some(7));
        }
        guesses.may_try(address(1)).expect("one wrong key");
        guesses.wrong(address(1), Some(8));
        guesses.may_try(address(1)).expect_err("two wrong keys");
    }

    #[test]
    fn addresses_do_not_fill_the_memory() {
        let guesses = Guesses::new(30);
        for n in 0..MOST_ADDRESSES as u32 + 100 {
            guesses.wrong(address(n), None);
        }
        assert!(guesses.table.lock().expect("table").addresses.len() <= MOST_ADDRESSES);
    }
}
