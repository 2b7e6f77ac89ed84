// Pictures of the gallery that are chosen, to be deleted.
import { confirm } from './dialogs.js';
import { countAgain, failGallery } from './gallery.js';
import { post, withToken } from './server.js';
import { $, onLanguage, say, t } from './words.js';

const chosen = () => [...$('gallery').querySelectorAll('.card:has(:checked)')];

export function showSelection() {
  const count = chosen().length;
  $('selection').hidden = !count;
  $('selected').textContent = t('selected', { count });
}
onLanguage(showSelection);

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
