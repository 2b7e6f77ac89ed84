// Pictures of the gallery that are chosen: to be deleted, drawn again or saved.
import { confirm } from './dialogs.js';
import { wantedIn } from './form.js';
import { countAgain, failGallery } from './gallery.js';
import { kept } from './kept.js';
import { drawingsLeft } from './key.js';
import { drawAll } from './queue.js';
import { post, withToken } from './server.js';
import { $, onLanguage, say, t } from './words.js';

export const chosen = () => [...$('gallery').querySelectorAll('.card:has(:checked)')];

export function showSelection() {
  const count = chosen().length;
  $('selection').hidden = !count;
  $('selected').textContent = t('selected', { count });
}
onLanguage(showSelection);

const boxes = () => [...$('gallery').querySelectorAll('.select input')];
let last = null; // the box that was ticked or cleared last

/** With Shift, everything from the last box to this one becomes like this one. */
export function selectRange({ target, shiftKey }) {
  if (!target.matches('.select input')) return;
  const all = boxes();
  const [from, to] = [all.indexOf(last), all.indexOf(target)].sort((a, b) => a - b);
  if (shiftKey && from >= 0) for (const box of all.slice(from, to + 1)) box.checked = target.checked;
  last = target;
  showSelection();
}

export function selectAll() {
  for (const box of boxes()) box.checked = true;
  showSelection();
}

/** Delete the chosen pictures and draw them again, if the key may draw as many. */
export async function redrawSelected() {
  const cards = chosen().filter((card) => card.dataset.url);
  const count = cards.length;
  if (!kept.get('key') || !count) { say(t(count ? 'redraw.key' : 'redraw.none')); return; }
  if (drawingsLeft() < count) { say(t('redraw.limit', { left: drawingsLeft() })); return; }
  if (!await confirm({ title: t('redraw.title', { count }), note: t('redraw.note'), yes: t('redraw') })) return;
  const wanted = cards.map((card) => wantedIn(new URL(card.querySelector('.open').href).hash));
  const left = await deleteAll(cards);
  drawAll(wanted.slice(0, count - left.length));
}

export function unselect() {
  const cards = chosen();
  for (const card of cards) card.querySelector('.select input').checked = false;
  showSelection();
  cards[0].querySelector('.select input').focus();
}

export async function deleteSelected() {
  const cards = chosen();
  const count = cards.length;
  const title = t(count === 1 ? 'delete.one' : 'delete.many', { count });
  const quote = count === 1 ? cards[0].querySelector('.prompt').textContent : '';
  if (!await confirm({ title, quote, note: t('delete.note'), yes: t('delete') })) return;
  const left = await deleteAll(cards);
  if (left.length) return;
  await countAgain();
  $('main').focus({ preventScroll: true });
  say(t('delete.done', { count }));
}

/** Delete one after the other; return those that could not be deleted. */
async function deleteAll(cards) {
  for (const [number, card] of cards.entries()) {
    try {
      await post('cache/delete', withToken(), { key: card.dataset.key });
    } catch (error) {
      if (error.status !== 404) { failGallery(error); return cards.slice(number); }
    }
    card.remove();
    showSelection();
  }
  return [];
}
