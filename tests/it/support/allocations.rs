//! An allocator that remembers each thread's largest single allocation and how many bytes it holds, for tests of hostile
//! and of large files.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Watched;

#[global_allocator]
static WATCHED: Watched = Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
    /// Bytes that the thread has allocated, less those that it has freed.
    static HELD: Cell<isize> = const { Cell::new(0) };
    /// The highest value of `HELD`.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn note(size: usize) {
    // A thread that is ending has no such cell any more.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
    hold(size.cast_signed());
}

fn hold(bytes: isize) {
    let Ok(held) = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        held.get()
    }) else {
        return;
    };
    let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held)));
}

// SAFETY: everything is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        hold(-layout.size().cast_signed());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        hold(-layout.size().cast_signed());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

/// The largest single allocation, in bytes, that `work` makes on this thread.
pub fn largest_in(work: impl FnOnce()) -> usize {
    LARGEST.set(0);
    work();
    LARGEST.get()
}

/// The most bytes, above those at the start, that this thread holds while `work` runs. What another thread frees counts
/// as held, and what another thread allocates does not.
pub fn peak_in(work: impl FnOnce()) -> usize {
    let start = HELD.get();
    PEAK.set(start);
    work();
    (PEAK.get() - start).max(0).cast_unsigned()
}
