// Saving pictures of the gallery as files: one as it is, several as a ZIP.
import { nameOf } from './caption.js';
import { blobOf } from './cards.js';
import { wantedIn } from './form.js';
import { say, t } from './words.js';
import { zip } from './zip.js';

/** Save the pictures of cards; those that only an image host has are left out, and counted. */
export async function saveCards(cards) {
  const files = [];
  for (const card of cards) {
    say(t('save.loading', { count: files.length + 1, all: cards.length }));
    const blob = await blobOf(`cache/${card.dataset.key}`);
    if (blob) files.push({ name: freeName(card, blob.type, files), blob });
  }
  if (files.length === 1) save(files[0].blob, files[0].name);
  if (files.length > 1) {
    const loaded = await Promise.all(files.map(async ({ name, blob }) => ({ name, bytes: new Uint8Array(await blob.arrayBuffer()) })));
    save(zip(loaded), 'pictures.zip');
  }
  const left = cards.length - files.length;
  say(t(left ? 'save.some' : 'save.done', { count: files.length, left }));
}

/** Name a file after its prompt and seed, or its key, unlike the others. */
function freeName(card, type, files) {
  const wanted = { seed: '42', ...wantedIn(new URL(card.querySelector('.open').href).hash) };
  const name = nameOf(wanted.prompt ? wanted : { prompt: card.dataset.key.slice(0, 12), seed: '0' }, type);
  const isTaken = files.some((file) => file.name === name);
  return isTaken ? name.replace(/(?=\.\w+$)/, `-${card.dataset.key.slice(0, 8)}`) : name;
}

function save(blob, download) {
  const href = URL.createObjectURL(blob);
  Object.assign(document.createElement('a'), { href, download }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60000);
}
