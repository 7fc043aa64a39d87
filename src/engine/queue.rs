//! The queue of requests that all replicas of an engine share, and the rule by which a request gets its replica.
//!
//! A request waits in the queue until a replica has room for it: fewer samples of its version in the batch than
//! `max_running`, and none that waits for cache pages. Background requests come last and may be preempted, so other
//! requests disregard them. Of the replicas with room the one with the fewest samples gets the request, and of those
//! the one with the fewest cached tokens in use. A replica that was given a longer beginning of the same prompt before
//! is preferred to it while it has at most an eighth of `max_running` (at least one) samples more.
//!
//! A replica whose device fails gets no requests while another one works.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::prefix_index::PrefixIndex;
use crate::domain::ModelVersionId;

/// Maximum number of replicas.
pub const MAX_REPLICAS: usize = 64;

/// Interval at which an idle replica whose device failed tries the device again.
pub const RETRY: Duration = Duration::from_secs(30);

/// What the queue has to know of a request.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The version whose scheduler runs the request: its own or, for a LoRA version, that of its base.
    pub version: ModelVersionId,
    pub samples: usize,
    pub background: bool,
    /// See `prefix_index::beginnings`; empty if there is one replica.
    pub beginnings: Vec<u64>,
}

/// A request that may be cancelled while it waits.
pub trait Cancellable {
    fn is_cancelled(&self) -> bool;
}

/// The samples of one version at one replica, and its cache there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionLoad {
    pub version: ModelVersionId,
    pub running: usize,
    pub waiting: usize,
    /// Of the running ones, those of background requests.
    pub running_background: usize,
    /// Of the waiting ones, those of background requests.
    pub waiting_background: usize,
    /// Cached tokens that running samples hold.
    pub used_tokens: usize,
    /// Cached tokens of prefixes that no running sample uses.
    pub remembered_tokens: usize,
    pub total_tokens: usize,
}

/// What a replica reports of itself between two steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// The last steps of its device failed.
    pub failing: bool,
    pub versions: Vec<VersionLoad>,
}

impl Load {
    pub fn sum(&self, of: impl Fn(&VersionLoad) -> usize) -> usize {
        self.versions.iter().map(of).sum()
    }
}

/// Sums over the queue and all replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub running: usize,
    pub waiting: usize,
    pub used_tokens: usize,
    pub remembered_tokens: usize,
    pub total_tokens: usize,
}

/// What a replica does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<T> {
    /// Take these requests, end all requests if `abort` is set, and compute a step.
    Work { new: Vec<T>, abort: bool },
    /// Try the device, which failed.
    Probe,
    /// The engine was dropped and nothing is left to do.
    End,
}

/// Why a request is not accepted.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too many requests wait.
    Full,
    /// The threads of all replicas have ended.
    Ended,
}

struct Waiting<T> {
    ticket: Ticket,
    request: T,
}

/// The queue's side of a replica.
struct Seat<T> {
    /// Its thread runs.
    alive: bool,
    load: Load,
    /// Requests that it is to take.
    inbox: Vec<Waiting<T>>,
    /// Requests that it has taken and that `load` does not include yet.
    taken: Vec<Ticket>,
    /// It is to return from `next` without a request.
    woken: bool,
}

impl<T> Seat<T> {
    fn works(&self) -> bool {
        self.alive && !self.load.failing
    }

    fn assigned(&self) -> impl Iterator<Item = &Ticket> {
        self.inbox.iter().map(|waiting| &waiting.ticket).chain(&self.taken)
    }

    fn samples(&self) -> usize {
        self.load.sum(|v| v.running + v.waiting) + self.assigned().map(|t| t.samples).sum::<usize>()
    }

    fn has_room(&self, ticket: &Ticket, max_running: usize) -> bool {
        let competes = |background: bool| ticket.background || !background;
        let assigned = self.assigned().filter(|t| t.version == ticket.version && competes(t.background));
        let assigned: usize = assigned.map(|t| t.samples).sum();
        let (running, waiting) = match self.load.versions.iter().find(|v| v.version == ticket.version) {
            Some(v) if ticket.background => (v.running, v.waiting),
            Some(v) => (v.running - v.running_background, v.waiting - v.waiting_background),
            None => (0, 0),
        };
        waiting == 0 && running + assigned < max_running
    }
}

struct State<T> {
    /// Requests without a replica, in the order of arrival.
    requests: VecDeque<Waiting<T>>,
    seats: Vec<Seat<T>>,
    index: PrefixIndex,
    aborted: bool,
    closed: bool,
}

impl<T: Cancellable> State<T> {
    fn waiting(&self) -> usize {
        let at = |seat: &Seat<T>| seat.inbox.len() + seat.taken.len() + seat.load.sum(|v| v.waiting);
        self.requests.len() + self.seats.iter().map(at).sum::<usize>()
    }

    /// The replica that gets a request now; `None` if it has to wait.
    fn choose(&self, ticket: &Ticket, max_running: usize) -> Option<usize> {
        // If all fail, requests get the error of their device, and one that succeeds ends the failure.
        let some_work = self.seats.iter().any(Seat::works);
        let candidates: Vec<(usize, usize, usize)> = (self.seats.iter().enumerate())
            .filter(|(_, seat)| seat.alive && (seat.works() || !some_work) && seat.has_room(ticket, max_running))
            .map(|(i, seat)| (seat.samples(), seat.load.sum(|v| v.used_tokens), i))
            .collect();
        let least = *candidates.iter().min()?;
        let matched = self.index.matched(&ticket.beginnings, self.seats.len());
        let nearest = *candidates.iter().min_by_key(|candidate| (Reverse(matched[candidate.2]), **candidate))?;
        let near = nearest.0 <= least.0 + (max_running / 8).max(1);
        Some(if near { nearest.2 } else { least.2 })
    }

    /// Moves requests from the queue to replicas with room. Returns the set of replicas, a bit each, that got one.
    fn assign(&mut self, max_running: usize) -> u64 {
        let mut given = 0;
        self.requests.retain(|waiting| !waiting.request.is_cancelled());
        for background in [false, true] {
            let mut full: Vec<ModelVersionId> = Vec::new();
            let mut i = 0;
            while let Some(Waiting { ticket, .. }) = self.requests.get(i) {
                if ticket.background != background || full.contains(&ticket.version) {
                    i += 1;
                    continue;
                }
                let Some(replica) = self.choose(ticket, max_running) else {
                    full.push(ticket.version.clone());
                    continue;
                };
                let Some(waiting) = self.requests.remove(i) else { break };
                self.index.insert(&waiting.ticket.beginnings, replica);
                self.seats[replica].inbox.push(waiting);
                given |= 1 << replica;
            }
        }
        given
    }

    /// Puts requests that a replica has not taken back to the front of the queue.
    fn take_back(&mut self, replica: usize) {
        for waiting in self.seats[replica].inbox.drain(..).rev() {
            self.requests.push_front(waiting);
        }
    }
}

/// A queue of requests `T` for a fixed number of replicas, each with a thread that calls [`Queue::next`].
pub struct Queue<T> {
    state: Mutex<State<T>>,
    /// One for each replica.
    wakers: Vec<Condvar>,
    max_running: usize,
}

impl<T: Cancellable> Queue<T> {
    /// A queue for `replicas` replicas, at most [`MAX_REPLICAS`], of which each runs `max_running` samples of a
    /// version together.
    pub fn new(replicas: usize, max_running: usize) -> Self {
        let seat = |_| Seat { alive: true, load: Load::default(), inbox: Vec::new(), taken: Vec::new(), woken: false };
        let state = State {
            requests: VecDeque::new(),
            seats: (0..replicas).map(seat).collect(),
            index: PrefixIndex::default(),
            aborted: false,
            closed: false,
        };
        let wakers = (0..replicas).map(|_| Condvar::new()).collect();
        Self { state: Mutex::new(state), wakers, max_running }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn assign(&self, state: &mut State<T>) {
        let given = state.assign(self.max_running);
        for (i, waker) in self.wakers.iter().enumerate() {
            if given >> i & 1 == 1 {
                waker.notify_one();
            }
        }
    }

    /// Adds a request.
    ///
    /// # Errors
    /// If `max_waiting` requests wait already, or no replica is left.
    pub fn submit(&self, ticket: Ticket, request: T, max_waiting: usize) -> Result<(), Refused> {
        let mut state = self.lock();
        if !state.seats.iter().any(|seat| seat.alive) {
            return Err(Refused::Ended);
        }
        if state.waiting() >= max_waiting {
            return Err(Refused::Full);
        }
        state.requests.push_back(Waiting { ticket, request });
        self.assign(&mut state);
        Ok(())
    }

    /// Records the load of a replica and returns what it does next. Blocks while it has nothing to do.
    pub fn next(&self, replica: usize, load: Load) -> Turn<T> {
        let (idle, failing) = (load.sum(|v| v.running + v.waiting) == 0, load.failing);
        let mut state = self.lock();
        state.seats[replica].load = load;
        state.seats[replica].taken.clear();
        if failing && state.seats.iter().any(Seat::works) {
            state.take_back(replica);
        }
        loop {
            self.assign(&mut state);
            let (abort, closed) = (state.aborted, state.closed);
            let seat = &mut state.seats[replica];
            if !idle || !seat.inbox.is_empty() || seat.woken {
                seat.woken = false;
                let (tickets, new) = seat.inbox.drain(..).map(|w| (w.ticket, w.request)).unzip();
                seat.taken = tickets;
                return Turn::Work { new, abort };
            }
            if closed {
                return Turn::End;
            }
            if failing {
                let waited = self.wakers[replica].wait_timeout(state, RETRY).unwrap_or_else(PoisonError::into_inner);
                state = waited.0;
                if waited.1.timed_out() && state.seats[replica].inbox.is_empty() {
                    return Turn::Probe;
                }
            } else {
                state = self.wakers[replica].wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Makes every replica return from [`Queue::next`].
    pub fn wake(&self) {
        self.lock().seats.iter_mut().for_each(|seat| seat.woken = true);
        self.wakers.iter().for_each(Condvar::notify_one);
    }

    /// Makes the replicas end all requests, now and later.
    pub fn abort(&self) {
        self.lock().aborted = true;
        self.wake();
    }

    /// Ends the replicas once they have nothing to do.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake();
    }

    /// Ends a replica whose thread ends: its requests go to others, and if there is none, all are dropped.
    pub fn leave(&self, replica: usize) {
        let mut state = self.lock();
        state.take_back(replica);
        let seat = &mut state.seats[replica];
        (seat.alive, seat.load, seat.taken) = (false, Load::default(), Vec::new());
        if state.seats.iter().any(|seat| seat.alive) {
            self.assign(&mut state);
        } else {
            state.requests.clear();
        }
    }

    pub fn totals(&self) -> Totals {
        let state = self.lock();
        let sum = |of: fn(&VersionLoad) -> usize| state.seats.iter().map(|seat| seat.load.sum(of)).sum();
        Totals {
            running: sum(|v| v.running),
            waiting: state.waiting(),
            used_tokens: sum(|v| v.used_tokens),
            remembered_tokens: sum(|v| v.remembered_tokens),
            total_tokens: sum(|v| v.total_tokens),
        }
    }

    /// What each replica reported last.
    pub fn loads(&self) -> Vec<Load> {
        self.lock().seats.iter().map(|seat| seat.load.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [u32; 0] = [];

    /// A request by its number; odd numbers above 100 are cancelled.
    impl Cancellable for u32 {
        fn is_cancelled(&self) -> bool {
            *self > 100 && self % 2 == 1
        }
    }

    fn ticket(background: bool, beginnings: &[u64]) -> Ticket {
        let version = ModelVersionId::from("a");
        Ticket { version, samples: 1, background, beginnings: beginnings.to_vec() }
    }

    fn queue(replicas: usize, max_running: usize, requests: std::ops::Range<u32>) -> Queue<u32> {
        let queue = Queue::new(replicas, max_running);
        requests.for_each(|request| queue.submit(ticket(false, &[]), request, 1000).unwrap());
        queue
    }

    fn load(running: usize, waiting: usize) -> Load {
        let version = VersionLoad {
            version: ModelVersionId::from("a"),
            running,
            waiting,
            running_background: 0,
            waiting_background: 0,
            used_tokens: 0,
            remembered_tokens: 0,
            total_tokens: 0,
        };
        Load { failing: false, versions: vec![version] }
    }

    /// The requests that a replica with something to do takes.
    fn taken(queue: &Queue<u32>, replica: usize, load: Load) -> Vec<u32> {
        match queue.next(replica, load) {
            Turn::Work { new, abort: false } => new,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_go_to_the_replica_with_the_fewest_samples() {
        let queue = queue(3, 8, 0..4);
        assert_eq!(taken(&queue, 2, Load::default()), [2]);
        assert_eq!(taken(&queue, 0, Load::default()), [0, 3]);
        assert_eq!(taken(&queue, 1, load(1, 0)), [1]);
        // 0 has two samples, 1 has one and one that it took, 2 has none any more.
        queue.wake();
        assert_eq!(taken(&queue, 2, load(0, 0)), NONE);
        queue.submit(ticket(false, &[]), 9, 1000).unwrap();
        assert_eq!(taken(&queue, 2, load(0, 0)), [9]);
        assert_eq!(queue.totals(), Totals { running: 1, waiting: 4, ..Totals::default() });
    }

    #[test]
    fn of_equals_the_one_with_the_fewest_cached_tokens_in_use() {
        let queue = queue(2, 8, 0..0);
        queue.wake();
        let mut busy = load(1, 0);
        busy.versions[0].used_tokens = 64;
        assert_eq!(taken(&queue, 0, busy.clone()), NONE);
        busy.versions[0].used_tokens = 32;
        assert_eq!(taken(&queue, 1, busy.clone()), NONE);
        queue.submit(ticket(false, &[]), 0, 1000).unwrap();
        assert_eq!(taken(&queue, 1, busy), [0]);
    }

    #[test]
    fn a_request_waits_until_some_replica_has_room() {
        let queue = queue(2, 2, 0..7);
        assert_eq!(taken(&queue, 0, Load::default()), [0, 2]);
        assert_eq!(taken(&queue, 1, Load::default()), [1, 3]);
        assert_eq!(queue.totals().waiting, 7);
        assert_eq!(taken(&queue, 0, load(2, 0)), NONE, "no place");
        assert_eq!(taken(&queue, 0, load(1, 1)), NONE, "one waits for pages");
        assert_eq!(taken(&queue, 1, load(1, 0)), [4]);
        assert_eq!(taken(&queue, 0, load(0, 0)), [5, 6]);
        assert_eq!(queue.submit(ticket(false, &[]), 7, 3), Err(Refused::Full));
        assert_eq!(queue.submit(ticket(false, &[]), 7, 4), Ok(()));
    }

    #[test]
    fn samples_of_a_request_take_places_each() {
        let queue = queue(1, 4, 0..0);
        for request in 0..3 {
            queue.submit(Ticket { samples: 2, ..ticket(false, &[]) }, request, 1000).unwrap();
        }
        assert_eq!(taken(&queue, 0, Load::default()), [0, 1]);
    }

    #[test]
    fn background_requests_come_last_and_leave_room_for_others() {
        let queue = queue(1, 1, 0..0);
        queue.submit(ticket(true, &[]), 0, 1000).unwrap();
        assert_eq!(taken(&queue, 0, Load::default()), [0]);
        queue.submit(ticket(true, &[]), 1, 1000).unwrap();
        queue.submit(ticket(false, &[]), 2, 1000).unwrap();
        let mut background = load(1, 0);
        background.versions[0].running_background = 1;
        assert_eq!(taken(&queue, 0, background), [2]);
        assert_eq!(taken(&queue, 0, load(1, 1)), NONE);
        assert_eq!(taken(&queue, 0, load(0, 0)), [1]);
    }

    #[test]
    fn versions_have_places_of_their_own() {
        let queue = queue(1, 1, 0..2);
        let other = Ticket { version: ModelVersionId::from("b"), ..ticket(false, &[]) };
        queue.submit(other, 2, 1000).unwrap();
        assert_eq!(taken(&queue, 0, Load::default()), [0, 2]);
    }

    #[test]
    fn a_replica_that_was_given_the_beginning_is_preferred_while_it_is_not_much_busier() {
        let queue = queue(2, 16, 0..0);
        let conversation = ticket(false, &[1, 2, 3]);
        queue.submit(conversation.clone(), 0, 1000).unwrap();
        assert_eq!(taken(&queue, 0, Load::default()), [0]);
        // Two samples more are accepted, a third is not.
        assert_eq!(taken(&queue, 0, load(1, 0)), NONE);
        queue.submit(conversation.clone(), 1, 1000).unwrap();
        queue.submit(conversation.clone(), 2, 1000).unwrap();
        queue.submit(conversation.clone(), 3, 1000).unwrap();
        assert_eq!(taken(&queue, 0, load(1, 0)), [1, 2]);
        assert_eq!(taken(&queue, 1, Load::default()), [3]);
        // Another beginning goes to the one with fewer samples.
        queue.submit(ticket(false, &[4]), 4, 1000).unwrap();
        assert_eq!(taken(&queue, 1, load(1, 0)), [4]);
    }

    #[test]
    fn a_replica_that_fails_gets_nothing_while_another_works() {
        let queue = queue(2, 2, 0..2);
        assert_eq!(taken(&queue, 1, Load::default()), [1]);
        // What it has not taken goes to the other one.
        queue.wake();
        assert_eq!(taken(&queue, 0, Load { failing: true, ..load(0, 0) }), NONE);
        assert_eq!(taken(&queue, 1, load(1, 0)), [0]);
        queue.submit(ticket(false, &[]), 2, 1000).unwrap();
        assert_eq!(taken(&queue, 1, Load { failing: true, ..load(2, 0) }), NONE);
        // Both fail: requests are not held back.
        assert_eq!(taken(&queue, 0, Load { failing: true, ..load(0, 0) }), [2]);
    }

    #[test]
    fn cancelled_requests_and_replicas_that_end_leave_nothing_behind() {
        let queue = queue(2, 1, 100..105);
        assert_eq!(taken(&queue, 0, Load::default()), [100]);
        queue.leave(1);
        assert_eq!(queue.totals().waiting, 3, "101 and 103 were cancelled");
        assert_eq!(taken(&queue, 0, load(0, 0)), [102]);
        queue.leave(0);
        assert_eq!(queue.totals(), Totals::default());
        assert_eq!(queue.submit(ticket(false, &[]), 0, 1000), Err(Refused::Ended));
    }

    #[test]
    fn an_aborted_queue_ends_requests_and_a_closed_one_ends_idle_replicas() {
        let queue = queue(1, 1, 0..1);
        queue.abort();
        assert_eq!(queue.next(0, Load::default()), Turn::Work { new: vec![0], abort: true });
        queue.close();
        assert_eq!(queue.next(0, load(1, 0)), Turn::Work { new: vec![], abort: true });
        assert_eq!(queue.next(0, load(0, 0)), Turn::End);
    }
}
