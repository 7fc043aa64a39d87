// Which sets other tabs of this browser show: a set in hand is given again to a page that opens, and must not be
// shown twice. Without Web Locks (plain HTTP on another host) nothing is known of other tabs.

const PREFIX = 'instructd.set.';

/** Claims a set for this tab until it is let go or the tab is gone; returns the function that lets go. */
export function claim(setId) {
  if (!navigator.locks) return () => {};
  let release = () => {};
  let released = false;
  navigator.locks
    .request(PREFIX + setId, { ifAvailable: true }, (lock) =>
      lock && !released ? new Promise((done) => (release = () => done(undefined))) : undefined,
    )
    .catch(() => {});
  return () => {
    released = true;
    release();
  };
}

/** Ids of the sets that tabs have claimed. */
export async function inOtherTabs() {
  try {
    const { held } = await navigator.locks.query();
    return held.filter((lock) => lock.name.startsWith(PREFIX)).map((lock) => lock.name.slice(PREFIX.length));
  } catch {
    return [];
  }
}
