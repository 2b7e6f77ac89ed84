// Drawing: from the request to the picture or the error on the stage.
import { howItCame } from './caption.js';
import { copy } from './copying.js';
import { retryTime } from './failure.js';
import { addressOf, hashOf, offerModels, readForm, setShape } from './form.js';
import { remember } from './history.js';
import { kept } from './kept.js';
import { ask, askJson, sign, withKey } from './server.js';
import { focusStage, reveal, show, view } from './stage.js';
import { $, say, t } from './words.js';

let running = null; // the AbortController of the current drawing

export const isRunning = () => Boolean(running);

/** Show the picture, drawn now if it has to be. `isHit`: it is known to be in the cache. */
export async function draw(wanted, isHit = false) {
  if (running) return;
  if (location.hash !== hashOf(wanted)) history[isHit ? 'replaceState' : 'pushState'](null, '', hashOf(wanted));
  if (!kept.get('key')) { askForKey(wanted); return; }
  const run = running = new AbortController();
  const began = performance.now();
  show({ state: 'waiting', wanted, began, sayAt: 15 });
  say(t('waiting'), true);
  try {
    const { response, isLate } = await askUntilDrawn(wanted, run.signal);
    const signing = signOrSayWhy(wanted);
    const { src, type } = await fileOf(response, signing);
    if (running === run) await showPicture(src);
    const signed = await signing;
    if (running !== run) return;
    const seconds = (performance.now() - began) / 1000;
    const how = howItCame(response, isHit);
    if (isLate && how.source === 'cache') how.source = 'other'; // drawn for this view all the same
    if (!isHit) remember(wanted, how.source !== 'cache' && seconds, $('picture'));
    show({ state: 'done', wanted, signed, seconds, type, ...how });
    if (!isHit) reveal();
    say($('how').textContent, true);
  } catch (error) {
    if (running === run) fail(error, wanted);
  } finally {
    if (running === run) running = null;
  }
}

/** Ask again as long as the service says that the drawing goes on (ANSWER_WITHIN). */
async function askUntilDrawn(wanted, signal) {
  for (let isLate = false; ; isLate = true) {
    try {
      return { response: await ask(addressOf(wanted), { headers: withKey(), signal }), isLate };
    } catch (error) {
      if (error.remedy !== 'reload') throw error;
      await new Promise((resolve) => { setTimeout(resolve, error.retryAfter * 1000); });
    }
  }
}

/** Return signed links and the final prompt, or `{ error }`. */
function signOrSayWhy(wanted) {
  const options = { expires_in: Number($('expiry').value) || null, extension: $('extension').checked ? 'png' : null };
  return sign(wanted, options).catch((error) => ({ error }));
}

/** Return the picture's URL, and its media type unless an image host has it. */
async function fileOf(response, signing) {
  if (response.type === 'opaqueredirect') {
    const { url, error } = await signing;
    if (error) throw error;
    return { src: url };
  }
  const type = response.headers.get('Content-Type') ?? '';
  // The browser takes a prompt of two dots for the folder above, which is this page.
  if (!type.startsWith('image/')) throw Object.assign(new Error(), { status: 400 });
  return { src: URL.createObjectURL(await response.blob()), type };
}

async function showPicture(src) {
  const picture = $('picture');
  if (picture.src.startsWith('blob:')) URL.revokeObjectURL(picture.src);
  picture.src = src;
  await picture.decode().catch(() => { throw Object.assign(new Error(), { status: 502 }); });
  setShape(picture.closest('figure'), picture.naturalWidth, picture.naturalHeight);
}

function fail(error, wanted) {
  if (error.status === 401) askForKey(wanted, true);
  else show({ state: 'failed', error, wanted, retryAt: retryTime(error) });
}

function askForKey(wanted, isWrong = false) {
  if (isWrong) kept.set('key', null);
  show({ state: 'key', wanted, isWrong });
  $('key').focus();
}

export function saveKey(event) {
  event.preventDefault();
  kept.set('key', $('key').value.trim());
  $('key').value = '';
  loadModels();
  if (view.wanted) draw(view.wanted);
  else lookUp();
}

export function stop() {
  if (!running) return;
  running.abort();
  running = null;
  show({ state: 'stopped' });
  say(t('stopped'), true);
}

export function submitForm(event) {
  event?.preventDefault();
  if (running) return;
  const wanted = readForm();
  $('prompt').setCustomValidity(wanted.prompt ? '' : t('prompt.needed'));
  if (!$('draw-form').reportValidity()) return;
  kept.set('form', hashOf(wanted));
  draw(wanted);
  if (!running) return;
  // Out of the field, so that N is a key again and a telephone's keyboard goes.
  if (document.activeElement === $('prompt')) focusStage();
  reveal();
}

export function drawAnother() {
  if (running) return;
  $('seed').value = Math.floor(Math.random() * 1e6);
  submitForm();
}

export async function loadModels() {
  const key = kept.get('key');
  if (!key) return;
  try {
    const { data } = await askJson('v1/models', { headers: withKey() });
    offerModels(data.map((model) => model.id));
  } catch (error) {
    // By now there may be another key, which is right; and a drawing reports a wrong one itself.
    if (error.status === 401 && !running && kept.get('key') === key) askForKey(view.wanted, true);
  }
}

/** Show the form's picture if it is in the cache: a link by itself must never spend money. */
export async function lookUp() {
  if (!kept.get('key')) { show({ state: 'key' }); return; }
  if (!running) show({ state: 'empty' });
  const wanted = readForm();
  if (!wanted.prompt) return;
  try {
    const response = await ask(addressOf(wanted), { method: 'HEAD', headers: withKey() });
    if (howItCame(response).source !== 'other' && view.state === 'empty') draw(wanted, true);
  } catch (error) {
    if (error.status === 401) askForKey(null, true);
  }
}

// --- links to the picture

/** Sign as is chosen: at once, since Safari forbids copying long after a click. */
export async function signAgain() {
  const { wanted, signed } = view;
  const unsigned = view.signed = { final_prompt: signed.final_prompt }; // until then, there is no link to copy
  const again = await signOrSayWhy(wanted);
  if (view.signed === unsigned) view.signed = { ...unsigned, ...again };
}

export function changeExtension() {
  kept.set('extension', $('extension').checked ? 'png' : null);
  signAgain();
}

export async function copySigned({ target: { dataset } }) {
  if (!dataset.copy) return;
  if (!view.signed.url) await signAgain();
  if (view.signed.url) await copy(view.signed[dataset.copy]);
  else say(t('copy.failed'));
}
