// The history of this browser: prompts, parameters and thumbnails.
import { historyCard } from './cards.js';
import { confirm } from './dialogs.js';
import { hashOf } from './form.js';
import { kept } from './kept.js';
import { $, onLanguage, say, t } from './words.js';

const MOST = 60;
const SIDE = 320; // pixels of a thumbnail, the longer one

function read() {
  try {
    return JSON.parse(kept.get('history')) ?? [];
  } catch {
    return [];
  }
}

/** Add an entry; `seconds` is how long drawing took, or false for a cache hit. */
export function remember(wanted, seconds, image) {
  const entries = read();
  const before = entries.find((one) => hashOf(one.wanted) === hashOf(wanted));
  const entry = { ...before, wanted, created: Date.now() / 1000, thumbnail: thumbnailOf(image) };
  if (seconds) entry.seconds = seconds;
  kept.set('history', JSON.stringify([entry, ...entries.filter((one) => one !== before)].slice(0, MOST)));
}

/** Return the median duration in seconds of this model's last nine drawings. */
export function lately(model) {
  const times = read().filter((one) => one.seconds && one.wanted.model === model).map((one) => one.seconds);
  const last = times.slice(0, 9).sort((a, b) => a - b);
  return last[Math.floor(last.length / 2)];
}

/** Return a thumbnail as a data: URL, or null for an image host's picture, which scripts cannot read. */
function thumbnailOf(image) {
  const scale = SIDE / Math.max(image.naturalWidth, image.naturalHeight);
  const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale].map(Math.ceil);
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  const context = canvas.getContext('2d');
  context.fillStyle = '#fff'; // under a transparent picture
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0, width, height);
  try {
    return canvas.toDataURL('image/jpeg', 0.7);
  } catch {
    return null;
  }
}

export function openHistory() {
  const entries = read();
  $('history').replaceChildren(...entries.map(historyCard));
  $('empty-history').hidden = !entries.length;
  $('history-note').hidden = Boolean(entries.length);
}
onLanguage(() => $('history-view').hidden || openHistory());

export async function emptyHistory() {
  const [title, note, yes] = ['title', 'note', 'yes'].map((name) => t(`history.empty.${name}`));
  if (!await confirm({ title, note, yes })) return;
  kept.set('history', null);
  openHistory();
  $('main').focus();
  say(t('history.emptied'));
}
