// Errors: the reason and the remedy.
import { fillStages } from './caption.js';
import { $, inSeconds, isText, language, t } from './words.js';

const NOT_AGAIN = [400, 413, 414, 422, 431]; // unchanged, it would fail again

export const isToBeChanged = ({ status, remedy }) => NOT_AGAIN.includes(status) || remedy === 'model';

export function retryTime({ retryAfter, remedy = 'wait' }) {
  return retryAfter && remedy === 'wait' ? performance.now() + retryAfter * 1000 : 0;
}

export function errorText({ status = 0, remedy }) {
  if (remedy === 'tomorrow') return t('error.limit');
  if (remedy === 'model') return t('error.model');
  const name = `error.${{ 413: 414, 431: 414 }[status] ?? status}`;
  return t(isText(name) ? name : 'error.other');
}

export function fillError(error) {
  const { remedy, remembered, until, stages = [] } = error;
  const isExplained = !error.status || stages.length || until; // by the page's own words
  const detail = isExplained ? '' : error.message;
  $('error').dataset.status = error.status ?? 0;
  $('error-text').textContent = errorText(error);
  $('error-says').hidden = !detail;
  $('error-detail').textContent = detail;
  $('retry').textContent = t(isToBeChanged(error) ? 'error.edit' : 'error.retry');
  $('error-help').textContent = remedy === 'operator' ? t('error.operator') : '';
  const isLasting = until && (remembered || !error.retryAfter); // otherwise it is over in seconds
  const time = isLasting && new Date(until).toLocaleString(language, { dateStyle: 'medium', timeStyle: 'short' });
  $('error-memory').textContent = isLasting ? t('error.until', { time }) : '';
  fillStages($('error').querySelector('.stages'), stages);
}

/** Show the time until a retry is possible; return it in seconds. */
export function fillCountdown(retryAt = 0) {
  const left = Math.max(0, Math.ceil((retryAt - performance.now()) / 1000));
  $('countdown').hidden = !left;
  $('retry').hidden = Boolean(left);
  $('countdown').textContent = t('error.wait', { time: inSeconds(left, 0) });
  return left;
}
