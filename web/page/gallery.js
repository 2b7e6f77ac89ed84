// The gallery: what is in the cache, a page at a time, for the administrator.
import { galleryCard, loadInView } from './cards.js';
import { errorText } from './failure.js';
import { session } from './kept.js';
import { askJson, withToken } from './server.js';
import { $, onLanguage, say, t, weight } from './words.js';

let following = null; // where the next page begins
let loading = null;
const end = new IntersectionObserver(
  (seen) => seen.some((one) => one.isIntersecting) && load(following), { rootMargin: '800px' },
);

/** Show the gallery, or ask for the token if administration is on. */
export async function openGallery(wrong = '') {
  const hasToken = Boolean(session.get('token'));
  const isOff = !hasToken && !wrong && await isAdministrationOff();
  $('gallery-content').hidden = !hasToken;
  $('gallery-form').hidden = hasToken || isOff;
  $('gallery-off').hidden = !isOff;
  $('token-wrong').textContent = wrong;
  if (hasToken) load();
  else $('admin-token').focus();
}

async function isAdministrationOff() {
  const { administration } = await askJson('status').catch(() => ({}));
  return administration?.enabled === false;
}

export async function saveToken(event) {
  event.preventDefault();
  session.set('token', $('admin-token').value.trim());
  $('admin-token').value = '';
  await openGallery();
  $('main').focus({ preventScroll: true });
}

/** List the cache from the start, or go on `before` where the last page ended. */
async function load(before = null) {
  loading?.abort();
  loading = new AbortController();
  end.disconnect();
  const query = { ...filter(), order: $('order').value, limit: 96, ...(before && { before }) };
  try {
    const page = await list(query, loading.signal);
    following = page.next;
    showCards(page.entries, Boolean(before));
    if (following) end.observe($('more'));
  } catch (error) {
    if (error.name !== 'AbortError') failGallery(error);
  }
}

/** Return what is searched for: a prompt, a model, and days by this browser's clock. */
function filter() {
  const [since, until] = ['since', 'until'].map((id) => $(id).value && new Date(`${$(id).value}T00:00`));
  if (until) until.setDate(until.getDate() + 1);
  const found = { q: $('search').value.trim(), model: $('by-model').value.trim() };
  for (const [name, day] of Object.entries({ since, until })) if (day > 0) found[name] = day / 1000;
  return found;
}

export const reload = () => load();
export const loadMore = () => load(following);

async function list(query, signal) {
  const page = await askJson(`cache?${new URLSearchParams(query)}`, { headers: withToken(), signal });
  const { entries, bytes } = page.totals;
  const totals = { count: entries.toLocaleString('en'), size: weight(bytes) };
  $('totals').textContent = t(entries === 1 ? 'totals.one' : 'totals', totals);
  return page;
}

function showCards(found, isMore) {
  const cards = found.map(galleryCard);
  offerSeen(found);
  $('gallery')[isMore ? 'append' : 'replaceChildren'](...cards);
  cards.forEach(loadInView);
  if (document.activeElement === $('more')) cards[0]?.querySelector('a').focus();
  describe();
  $('gallery').dispatchEvent(new Event('change')); // cards that were selected are gone
  say(t('gallery.shown', { count: $('gallery').childElementCount }), true);
}

/** Offer the models of the pictures that are shown. */
function offerSeen(found) {
  const known = [...$('models-seen').options].map(({ value }) => value);
  const models = new Set(found.map(({ model }) => model).filter((model) => model && !known.includes(model)));
  $('models-seen').append(...[...models].map((model) => new Option(model, model)));
}

function describe(failure = '') {
  const q = $('search').value.trim();
  const isFiltered = $('by-model').value.trim() || $('since').value || $('until').value;
  const nothing = $('gallery').childElementCount ? '' : t(isFiltered ? 'gallery.filtered' : q ? 'gallery.none' : 'gallery.empty', { q });
  $('gallery-note').textContent = failure || nothing;
  $('more').textContent = t(failure ? 'error.retry' : 'gallery.more');
  $('more').hidden = !following && !failure;
}
onLanguage(() => $('gallery-content').hidden || load());

export function failGallery(error) {
  if (![401, 403].includes(error.status)) { describe(errorText(error)); return; }
  session.set('token', null);
  openGallery(error.status === 401 ? t('token.wrong') : '');
}

/** Update the totals after pictures were deleted. */
export async function countAgain() {
  describe();
  await list({ limit: 1 }).catch(failGallery);
}
