// Words of the page. Language files are flat JSON; `key_one` is used where the plural rule says so.

export const LANGUAGES = { en: 'English', zh: '中文' };

export const lang = document.documentElement.lang.startsWith('zh') ? 'zh' : 'en';

const words = await fetch(`/static/i18n/${lang}.json`, { credentials: 'same-origin' }).then((r) => r.json());
const plural = new Intl.PluralRules(lang);
const locale = lang === 'zh' ? 'zh-CN' : 'en';

export const has = (key) => key in words;

/** The text of `key` with `{name}` filled in; `n` also picks the plural form. A missing key shows itself. */
export function t(key, params = {}) {
  let text = words[key] ?? key;
  if ('n' in params) text = words[`${key}_${plural.select(Number(params.n))}`] ?? text;
  return text.replace(/\{(\w+)\}/g, (all, name) =>
    name in params ? (typeof params[name] === 'number' ? num(params[name]) : String(params[name])) : all,
  );
}

export function setLanguage(code) {
  try {
    localStorage.setItem('instructd.lang', code);
  } catch {
    /* not remembered */
  }
  location.reload();
}

/** Between two sentences: Chinese has no space after a full stop. */
export const GAP = lang === 'zh' ? '' : ' ';

const ints = new Intl.NumberFormat(locale);
export const num = (x) => ints.format(x);

/** Short figure for curves and metrics: 4 significant digits, exponents only where they help. */
export function fig(x) {
  if (typeof x !== 'number' || !Number.isFinite(x)) return '–';
  if (x !== 0 && (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e6)) return x.toExponential(2);
  return new Intl.NumberFormat(locale, { maximumSignificantDigits: 4 }).format(x);
}

/** Seconds → "1 h 05 m", "3 m 20 s", "12 s". */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return '–';
  const s = Math.max(0, Math.round(seconds));
  if (s >= 3600) return t('time.hm', { h: Math.floor(s / 3600), m: String(Math.floor((s % 3600) / 60)).padStart(2, '0') });
  if (s >= 60) return t('time.ms', { m: Math.floor(s / 60), s: String(s % 60).padStart(2, '0') });
  return t('time.s', { s });
}

/** µs since the epoch (or an ISO string) → local date and time. */
export function when(value) {
  if (value === null || value === undefined || value === 0) return '–'; // 0: built in, made at no time
  const date = typeof value === 'number' ? new Date(value / 1000) : new Date(value);
  if (Number.isNaN(date.getTime())) return '–';
  const sameDay = date.toDateString() === new Date().toDateString();
  return new Intl.DateTimeFormat(locale, sameDay ? { timeStyle: 'short' } : { dateStyle: 'medium', timeStyle: 'short' }).format(
    date,
  );
}

/** Milliseconds since the epoch from µs or an ISO string. */
export const toMs = (value) => (typeof value === 'number' ? value / 1000 : Date.parse(value));
