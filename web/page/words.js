// The page's two languages, numbers and times in them, and announcements to screen readers.
import en from './en.js';
import zh, { reasons } from './zh.js';
import { kept } from './kept.js';

export const $ = (id) => document.getElementById(id);

const LANGUAGES = { en, zh };
const listeners = [];
export let language = kept.get('language') ?? (navigator.language.startsWith('zh') ? 'zh' : 'en');

export const isText = (name) => name in en;

export function t(name, values = {}) {
  return LANGUAGES[language][name].replace(/\{(\w+)\}/g, (_, value) => values[value]);
}

/** Why a stage failed, in the page's language. */
export function reasonsOf(why) {
  return language === 'zh' ? why.split(', ').map((word) => reasons[word] ?? word).join('、') : why;
}

/** Call `listener` whenever a language is set: at the start, too. */
export const onLanguage = (listener) => listeners.push(listener);

export function setLanguage(chosen) {
  document.documentElement.lang = language = chosen;
  const [textContent, lang] = chosen === 'zh' ? ['English', 'en'] : ['中文', 'zh'];
  Object.assign($('language'), { textContent, lang });
  localise(document);
  localise($('card').content);
  for (const listener of listeners) listener();
}

function localise(part) {
  for (const node of part.querySelectorAll('[data-text]')) node.textContent = t(node.dataset.text);
  for (const [name, attribute] of [['label', 'aria-label'], ['placeholder', 'placeholder'], ['title', 'title']]) {
    for (const node of part.querySelectorAll(`[data-${name}]`)) node.setAttribute(attribute, t(node.dataset[name]));
  }
}

export const inSeconds = (seconds, digits = 1) => t('seconds', { n: seconds.toFixed(digits) });

export function duration(seconds) {
  return seconds < 1 ? t('milliseconds', { n: Math.round(seconds * 1000) }) : inSeconds(seconds, seconds < 10 ? 1 : 0);
}

export function weight(bytes) {
  const [unit, size] = [['GB', 1e9], ['MB', 1e6], ['kB', 1e3]].find((one) => bytes >= one[1]) ?? ['kB', 1e3];
  return unit === 'kB' ? `${Math.ceil(bytes / size)} kB` : `${(bytes / size).toFixed(1)} ${unit}`;
}

/** Say how large a picture is, and was requested if that differs. One side alone is a square. */
export function sizeFacts({ width, height }, drawnWidth, drawnHeight) {
  const asked = width || height ? `${width || height} × ${height || width}` : '';
  const drawn = drawnWidth ? `${drawnWidth} × ${drawnHeight}` : asked;
  return drawn === asked || !asked ? [drawn] : [drawn, t('size.asked', { asked })];
}

/** How long ago a Unix time is. */
export function age(created) {
  const seconds = Math.max(0, Date.now() / 1000 - created);
  const units = [['day', 86400], ['hour', 3600], ['minute', 60], ['second', 1]];
  const [unit, size] = units.find((one) => seconds >= one[1]) ?? units[3];
  return new Intl.RelativeTimeFormat(language, { numeric: 'auto' }).format(-Math.floor(seconds / size), unit);
}

/** Announce a text to screen readers, and show it unless it is visible elsewhere. */
export function say(text, isSeenElsewhere = false) {
  clearTimeout(say.timer);
  $('status').classList.toggle('unseen', isSeenElsewhere);
  $('status').textContent = ''; // or the same words twice would be read out once
  requestAnimationFrame(() => { $('status').textContent = text; });
  say.timer = setTimeout(() => { $('status').textContent = ''; }, 6000);
}
