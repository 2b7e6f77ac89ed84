// Cards: pictures of the history and the gallery.
import { copy } from './copying.js';
import { enlarge } from './dialogs.js';
import { hashOf, wantedFrom } from './form.js';
import { ask, withToken } from './server.js';
import { $, age, sizeFacts, t, weight } from './words.js';

function makeCard({ prompt, href, facts, by }) {
  const node = $('card').content.firstElementChild.cloneNode(true);
  const part = (selector) => node.querySelector(selector);
  part('.prompt').textContent = prompt;
  part('.facts').replaceChildren(...facts);
  part('.by').replaceChildren(...by);
  if (href) part('.open').href = href;
  return { node, part };
}

/** Return facts as elements: lines break between them, not within one. */
const joined = (...facts) => facts.filter(Boolean).map((textContent) => Object.assign(document.createElement('span'), { textContent }));

export function historyCard({ wanted, created, thumbnail }) {
  const facts = joined(...sizeFacts(wanted), wanted.model, t('seed.is', wanted));
  const { node, part } = makeCard({ prompt: wanted.prompt, href: hashOf(wanted), facts, by: joined(age(created)) });
  for (const selector of ['.select', '.copy']) part(selector).remove();
  if (thumbnail) part('img').src = thumbnail;
  return node;
}

export function galleryCard(entry) {
  const prompt = entry.prompt ?? t('card.lost');
  // Its numbers come out of the URL: a seed of 18 digits is more than a JSON number holds.
  const asked = entry.url && Object.fromEntries(new URL(entry.url, location).searchParams);
  const { node, part } = makeCard({
    prompt,
    href: asked && hashOf(wantedFrom({ ...asked, prompt })),
    facts: joined(...sizeFacts(entry, entry.drawn_width, entry.drawn_height), weight(entry.bytes)),
    by: joined(hostOf(entry.drawn_by), age(entry.created)),
  });
  Object.assign(node.dataset, { key: entry.key, url: entry.url ?? '' });
  part('.select input').ariaLabel = t('card.select', { prompt });
  part('.copy').ariaLabel = t('copy.this', { prompt });
  part('.copy').addEventListener('click', () => copy(entry.markdown));
  if (!entry.markdown) part('.copy').remove();
  if (!asked) openByKey(part('.open'), entry.key, prompt);
  return node;
}

/** Return a backend's name: its host, without scheme, port and path. */
function hostOf(name) {
  if (!name || !URL.canParse(name)) return name;
  const { hostname } = new URL(name);
  return /^(127\.|\[::1\])/.test(hostname) ? 'localhost' : hostname;
}

// --- thumbnails, fetched with the token while their cards are in view

const fetching = new WeakMap();
const inView = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    if (isIntersecting) loadThumbnail(target);
    else fetching.get(target)?.abort(); // scrolled past: those in view come first
  }
}, { rootMargin: '400px' });
export const loadInView = (node) => inView.observe(node);

async function loadThumbnail(node) {
  const image = node.querySelector('img');
  const run = new AbortController();
  fetching.set(node, run);
  const src = await srcOf(`cache/${node.dataset.key}?thumbnail`, run.signal);
  if (run.signal.aborted) return;
  inView.unobserve(node);
  // A hosted picture has no file here, and its URL leads to its host.
  image.src = src ?? node.dataset.url;
  image.onload = () => URL.revokeObjectURL(image.src);
}

async function srcOf(path, signal) {
  const blob = await blobOf(path, signal);
  return blob && URL.createObjectURL(blob);
}

/** Return a picture that was fetched with the token, or nothing. */
export async function blobOf(path, signal) {
  try {
    const response = await ask(path, { headers: withToken(), signal });
    return response.ok ? await response.blob() : null;
  } catch {
    return null;
  }
}

/** Show a picture in full size: an imported one has no URL until someone requests it by its prompt. */
function openByKey(link, key, prompt) {
  link.href = '#view=gallery';
  link.addEventListener('click', async (event) => {
    event.preventDefault();
    const src = await srcOf(`cache/${key}`);
    if (!src) return;
    enlarge(src, prompt);
    $('enlarged').addEventListener('load', () => URL.revokeObjectURL(src), { once: true });
  });
}
