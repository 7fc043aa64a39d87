// Errors in plain words: what happened and what to do, from the server's status and its own message.
import { duration, t } from './i18n.js';

/** Names that the server puts between backticks, in quotes. */
const quoted = (text) => text.replace(/`([^`]*)`/g, '“$1”');

export function errorText(error) {
  switch (error?.status) {
    case 0:
      return t('error.network');
    case 401:
      return t('error.sign_in');
    case 403:
      return t('error.forbidden');
    case 413:
      return t('error.too_large');
    case 429:
      return error.retryAfter ? t('error.busy_for', { d: duration(error.retryAfter) }) : t('error.busy');
    case 503:
      return t('error.not_ready');
    case 500:
      return error.message ? t('error.server_said', { why: quoted(error.message) }) : t('error.server');
    default:
      if (error?.param === 'max_tokens' && /context/.test(error.message)) return t('error.too_long');
      if (error?.param === 'messages' && /context/.test(error.message)) return t('error.conversation_too_long');
      // "must be 0 to 2" says little without the field it is about.
      if (error?.param && error.message && !error.message.includes(error.param)) return `${error.param}: ${quoted(error.message)}`;
      return quoted(error?.message ?? String(error));
  }
}
