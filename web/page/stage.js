// The stage shows a job or a group of them (jobs.js), asks for the key, or is empty.
import { fillCaption } from './caption.js';
import { fillError, fillCountdown } from './failure.js';
import { setShape } from './form.js';
import { lately } from './history.js';
import { kept } from './kept.js';
import { $, inSeconds, onLanguage, say, t } from './words.js';

const isStill = matchMedia('(prefers-reduced-motion: reduce)');
const isNarrow = matchMedia('(max-width: 60rem)');

export let view = { state: 'empty' };
let ticker;
const listeners = [];

/** Call `listener` whenever something is shown. */
export const onShow = (listener) => listeners.push(listener);

export function show(next) {
  view = next;
  $('stage').dataset.state = view.state;
  const focused = document.activeElement;
  for (const part of $('stage').querySelectorAll('[data-in]')) {
    part.hidden = !part.dataset.in.split(' ').includes(view.state);
  }
  // Where the focus is hidden, the keyboard would start at the top of the page again.
  if ($('stage').contains(focused) && focused.closest('[hidden]')) focusStage();
  $('key-wrong').textContent = view.wrong ?? '';
  $('keep-key').hidden = !kept.get('key');
  if (view.state === 'waiting') fillLately();
  if (view.state === 'stopped') $('stopped').textContent = t(view.isUnsent ? 'stopped.unsent' : 'stopped');
  if (view.state === 'done') hang(view);
  if (view.state === 'failed') fillError(view.error);
  clearInterval(ticker);
  if (view.state === 'waiting' || view.retryAt) ticker = setInterval(tick, 100);
  tick();
  for (const listener of listeners) listener();
}

/** Put a picture into the frame, with its caption. */
function hang(job) {
  const { image } = job;
  if ($('picture') !== image) {
    const old = $('picture');
    old.removeAttribute('id');
    image.id = 'picture';
    old.replaceWith(image);
    setShape(image.closest('figure'), image.naturalWidth, image.naturalHeight);
  }
  fillCaption(job);
}
onLanguage(() => show(view));

export const focusStage = () => $('stage').focus({ preventScroll: true });

/** Bring what is on the stage into view where the form is above it, on a telephone. */
export function reveal() {
  if (!isNarrow.matches) return;
  const part = $('stage').querySelector('#frame:not([hidden]), figure:not([hidden]) #enlarge') ?? $('stage');
  part.scrollIntoView({ block: 'center', behavior: isStill.matches ? 'auto' : 'smooth' });
}

function fillLately() {
  const seconds = lately(view.wanted.model);
  $('lately').hidden = !seconds;
  if (seconds) $('lately').textContent = t('lately', { time: inSeconds(seconds, seconds < 1 ? 1 : 0) });
}

/** Count seconds up while drawing, and down until a retry is possible. */
function tick() {
  if (view.state === 'waiting') countUp();
  if (view.state === 'failed' && !fillCountdown(view.retryAt) && view.retryAt) {
    view.retryAt = 0;
    clearInterval(ticker);
    say(t('error.ready'), true);
  }
}

function countUp() {
  const seconds = (performance.now() - view.began) / 1000;
  $('seconds').textContent = inSeconds(seconds, isStill.matches ? 0 : 1);
  if (seconds < view.sayAt) return;
  view.sayAt += 15;
  say(t('waiting.still', { time: inSeconds(seconds, 0) }), true);
}
