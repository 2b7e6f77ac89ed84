// Links to the picture on the stage, and the picture itself, for the clipboard.
import { copy } from './copying.js';
import { kept } from './kept.js';
import { sign } from './server.js';
import { view } from './stage.js';
import { $, say, t } from './words.js';

/** Return signed links and the final prompt, or `{ error }`. */
export function signOrSayWhy(wanted) {
  const options = { expires_in: Number($('expiry').value) || null, extension: $('extension').checked ? 'png' : null };
  return sign(wanted, options).catch((error) => ({ error }));
}

/** Sign as is chosen: at once, since Safari forbids copying long after a click. */
export async function signAgain() {
  const job = view;
  const unsigned = job.signed = { final_prompt: job.signed.final_prompt }; // until then, there is no link to copy
  const again = await signOrSayWhy(job.wanted);
  if (job.signed === unsigned) job.signed = { ...unsigned, ...again, options: chosen() };
}

const chosen = () => `${$('expiry').value} ${$('extension').checked}`;

export function changeExtension() {
  kept.set('extension', $('extension').checked ? 'png' : null);
  signAgain();
}

/** Copy the picture itself, as a PNG, the only format that every clipboard takes. */
export async function copyPicture() {
  const { image } = view;
  const canvas = Object.assign(document.createElement('canvas'), { width: image.naturalWidth, height: image.naturalHeight });
  canvas.getContext('2d').drawImage(image, 0, 0);
  // As a promise: Safari allows writing only at once after the click.
  const png = new Promise((resolve) => { canvas.toBlob(resolve, 'image/png'); });
  const isCopied = await navigator.clipboard.write([new ClipboardItem({ 'image/png': png })]).then(() => true, () => false);
  say(t(isCopied ? 'copy.done' : 'copy.failed'));
}

export async function copySigned({ target: { dataset } }) {
  if (!dataset.copy) return;
  const job = view;
  if (!job.signed.url || (job.signed.options ?? chosen()) !== chosen()) await signAgain();
  if (job.signed.url) await copy(job.signed[dataset.copy]);
  else say(t('copy.failed'));
}
