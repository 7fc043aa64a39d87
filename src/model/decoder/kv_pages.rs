//! Reference-counted pages of a cache and the list of free ones.

/// Marks a page that a sequence has freed because no later token attends to it.
pub const GONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Pages {
    references: Vec<u32>,
    free: Vec<u32>,
}

impl Pages {
    pub fn new(n: usize) -> Self {
        Self { references: vec![0; n], free: (0..n as u32).rev().collect() }
    }

    pub fn total(&self) -> usize {
        self.references.len()
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes a free page with one reference; `None` when no page is free.
    pub fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.references[page as usize] = 1;
        Some(page)
    }

    pub fn references(&self, page: u32) -> u32 {
        self.references.get(page as usize).copied().unwrap_or(0)
    }

    /// Adds a reference, unless the page is `GONE`.
    pub fn retain(&mut self, page: u32) {
        if let Some(count) = self.references.get_mut(page as usize) {
            *count += 1;
        }
    }

    /// Drops a reference; true when the page became free.
    pub fn release(&mut self, page: u32) -> bool {
        let Some(count) = self.references.get_mut(page as usize) else { return false };
        debug_assert!(*count > 0, "page {page} released twice");
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.free.push(page);
        }
        *count == 0
    }
}
