// Which key was pressed, whatever the keyboard types: by its sign where that is a Latin one, else by its place.

const editable = (target) =>
  target instanceof Element && target.closest('input,textarea,[contenteditable]:not([contenteditable=false])') !== null;

/** The key belongs to an input method that composes text. Safari's Enter that ends a composition comes after
 * `compositionend`, without `isComposing`; its keyCode 229 tells. */
export const composing = (e) => e.isComposing === true || (e.keyCode === 229 && editable(e.target));

const PLACES = { Equal: '=', NumpadEqual: '=', NumpadEnter: 'Enter' };

/**
 * The name of the key: `a` … `z`, `0` … `9`, `=`, `?`, or a named key such as `Enter`; null for anything else and
 * while text is composed. A Cyrillic or Greek letter, a sign of the French digit row or a key that an input
 * method took ("Process") counts by its place on the keyboard.
 */
export function keyOf(e) {
  if (composing(e)) return null;
  const typed = e.key ?? '';
  if (typed.length > 1 && !['Process', 'Unidentified', 'Dead'].includes(typed)) return typed;
  const sign = typed.length === 1 ? typed.toLowerCase() : '';
  if (/^[a-z0-9=?]$/.test(sign)) return sign;
  const code = e.code ?? '';
  const letter = /^Key([A-Z])$/.exec(code)?.[1];
  if (letter) return letter.toLowerCase();
  if (e.shiftKey) return code === 'Slash' ? '?' : null; // "!" is not "1"
  const digit = /^(?:Digit|Numpad)([0-9])$/.exec(code)?.[1];
  return digit ?? PLACES[code] ?? null;
}
