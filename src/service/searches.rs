//! Searches through lists that no index answers, bounded in time: they look at the newest rows first, and a later request
//! continues where one has stopped.

use std::time::{Duration, Instant};

use super::Result;
use crate::domain::Micros;
use crate::store::{self, Page, Part, PartEnd};

/// Most rows that one statement looks at.
const MOST: i64 = 50_000;

/// How long one request may search.
#[derive(Clone, Copy, Debug)]
pub struct SearchLimits {
    /// No further statement begins after this time.
    pub time: Duration,
    /// Rows that the first statement looks at. Later ones look at more or fewer, by the time that they take.
    pub rows: i64,
}

impl Default for SearchLimits {
    fn default() -> Self {
        Self { time: Duration::from_secs(2), rows: 1000 }
    }
}

/// A page of a list, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<T> {
    pub rows: Vec<T>,
    /// Where the next page begins. `None` when the page is empty and the list was searched to its end.
    pub after: Option<String>,
    /// Number of all rows that match; `None` when it is not known.
    pub total: Option<i64>,
    /// The page is not full because the time was used up: rows that are older than this have not been searched.
    pub searched_to: Option<Micros>,
}

impl<T> Listed<T> {
    /// A page of a list that was counted.
    pub fn counted(rows: Vec<T>, total: Option<i64>, id: impl Fn(&T) -> &str) -> Self {
        let after = rows.last().map(|row| id(row).to_owned());
        Self { rows, after, total, searched_to: None }
    }

    /// The same page with other rows.
    pub fn map<U>(self, change: impl FnMut(T) -> U) -> Listed<U> {
        let Self { rows, after, total, searched_to } = self;
        Listed { rows: rows.into_iter().map(change).collect(), after, total, searched_to }
    }
}

/// Searches part after part until the page is full, the list ends, or the time is used up. At least one part is searched,
/// so that following `after` comes to the end whatever the limits are. The total is known when one request has searched
/// the whole list.
///
/// # Errors
/// Those of `part`.
pub async fn search<T, F>(
    limits: SearchLimits,
    page: Page,
    id: impl Fn(&T) -> &str,
    mut part: impl FnMut(Part) -> F,
) -> Result<Listed<T>>
where
    F: Future<Output = store::Result<(Vec<T>, Option<PartEnd>)>>,
{
    let begun = Instant::now();
    let is_first = page.after.is_none();
    let (mut found, mut after, mut rows) = (Vec::new(), page.after, limits.rows.max(1));
    loop {
        let (started, wanted) = (Instant::now(), page.limit - found.len() as i64);
        let (some, end) = part(Part { after: after.clone(), rows, limit: wanted }).await?;
        found.extend(some);
        if found.len() as i64 >= page.limit {
            return Ok(Listed::counted(found, None, id));
        }
        let Some(end) = end else {
            let total = is_first.then_some(found.len() as i64);
            return Ok(Listed::counted(found, total, id));
        };
        if begun.elapsed() >= limits.time {
            return Ok(Listed { rows: found, after: Some(end.id), total: None, searched_to: Some(end.created) });
        }
        rows = next_rows(rows, started.elapsed(), limits);
        after = Some(end.id);
    }
}

/// Rows for the next statement: more after one that took a small part of the time, fewer after a long one.
fn next_rows(rows: i64, took: Duration, limits: SearchLimits) -> i64 {
    if took < limits.time / 16 {
        (rows * 2).min(MOST.max(limits.rows))
    } else if took > limits.time / 4 {
        (rows / 2).max(1)
    } else {
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of the numbers below `n`, newest first, of which those that `fits` accepts match.
    async fn numbers(
        n: i64,
        limits: SearchLimits,
        page: Page,
        fits: impl Fn(i64) -> bool,
    ) -> (Listed<String>, Vec<i64>) {
        let mut sizes = Vec::new();
        let listed = search(
            limits,
            page,
            |id: &String| id,
            |part: Part| {
                sizes.push(part.rows);
                let first = part.after.map_or(n, |after| after.parse::<i64>().unwrap()) - 1;
                let last = first - part.rows + 1;
                let all = (last.max(0)..=first).rev().filter(|i| fits(*i));
                let rows = all.take(part.limit.try_into().unwrap()).map(|i| format!("{i:06}")).collect();
                let end = (last >= 0).then(|| PartEnd { id: format!("{last:06}"), created: last });
                std::future::ready(Ok((rows, end)))
            },
        )
        .await
        .unwrap();
        (listed, sizes)
    }

    #[tokio::test]
    async fn a_search_without_time_finds_everything_once_by_its_cursor() {
        let limits = SearchLimits { time: Duration::ZERO, rows: 7 };
        let (mut found, mut after, mut stops) = (Vec::new(), None, 0);
        loop {
            let (listed, sizes) = numbers(100, limits, Page { after, limit: 3 }, |i| i % 10 < 4).await;
            assert_eq!(sizes, [7], "one part for each request");
            stops += usize::from(listed.searched_to.is_some());
            let is_over = listed.rows.len() < 3 && listed.searched_to.is_none();
            found.extend(listed.rows);
            after = listed.after;
            if is_over {
                break;
            }
        }
        let expected: Vec<String> = (0..100).rev().filter(|i| i % 10 < 4).map(|i| format!("{i:06}")).collect();
        assert_eq!(found, expected);
        assert!(stops > 3, "{stops}");
    }

    #[tokio::test]
    async fn parts_grow_while_there_is_time_and_the_total_is_known_at_the_end() {
        let limits = SearchLimits { time: Duration::from_secs(3600), rows: 100 };
        let (listed, sizes) = numbers(1000, limits, Page { after: None, limit: 9 }, |i| i == 3).await;
        assert_eq!(sizes, [100, 200, 400, 800]);
        assert_eq!((listed.rows.len(), listed.total, listed.searched_to), (1, Some(1), None));
        let page = Page { after: Some("000500".into()), limit: 9 };
        assert_eq!(numbers(1000, limits, page, |i| i == 3).await.0.total, None, "newer rows were not searched");
        let (full, sizes) = numbers(1000, limits, Page { after: None, limit: 9 }, |_| true).await;
        assert_eq!((sizes, full.after.as_deref(), full.total), (vec![100], Some("000991"), None));
    }

    #[test]
    fn parts_follow_the_time_that_they_take() {
        let limits = SearchLimits { time: Duration::from_secs(2), rows: 1000 };
        let after = |ms| next_rows(4000, Duration::from_millis(ms), limits);
        assert_eq!((after(10), after(300), after(900)), (8000, 4000, 2000));
        assert_eq!(next_rows(MOST, Duration::ZERO, limits), MOST);
        assert_eq!(next_rows(1, Duration::from_secs(9), limits), 1);
    }
}
