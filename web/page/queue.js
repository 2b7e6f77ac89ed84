// The queue: several pictures are drawn at once, and others wait for their turn.
import { isCached, run } from './drawing.js';
import { hashOf, readForm } from './form.js';
import { addJob, change, isCut, isUnfinished, jobOf, jobs, joinGroup, keptJobs, newGroup, onChange, removeJob } from './jobs.js';
import { kept } from './kept.js';
import { askForKey, keepKey, saveKey as keepNewKey, variantsLeft } from './key.js';
import { focusStage, reveal, show, view } from './stage.js';
import { $, say, t } from './words.js';

// A browser opens six connections to a server, and two are left for everything else.
const AT_ONCE = 4;

/** Draw what is queued, as long as few enough are being drawn. */
function pump() {
  const free = AT_ONCE - jobs.filter(({ state }) => state === 'waiting').length;
  const next = jobs.filter(({ state }) => state === 'queued').slice(0, Math.max(0, free));
  for (const job of next) {
    if (kept.get('key')) run(job).then(pump);
    else change(job, { state: 'key', wrong: '' });
  }
}

/** Draw a picture and show it; one that is being drawn already is only shown. */
export function draw(wanted, isHit = false) {
  if (location.hash !== hashOf(wanted)) history[isHit ? 'replaceState' : 'pushState'](null, '', hashOf(wanted));
  const same = jobOf(wanted);
  if (same && isUnfinished(same)) {
    show(same);
  } else {
    if (same && !same.group) removeJob(same);
    const job = { state: 'queued', wanted, isHit };
    addJob(job);
    show(job);
  }
  pump();
  if (view.state === 'waiting') say(t('waiting'), true);
}

/** Draw once more what failed, in its place. */
export function retry(job) {
  change(job, { state: 'queued' });
  pump();
  say(t('waiting'), true);
}

/** Draw the form's picture several times, with new seeds. */
export function drawVariants(event) {
  const wanted = event.detail > 1 ? null : wantedOrComplain();
  if (!wanted) return;
  history.pushState(null, '', hashOf(wanted));
  const group = newGroup(wanted);
  for (let count = variantsLeft(); count > 0; count -= 1) {
    const job = { state: 'queued', wanted: { ...wanted, seed: newSeed() } };
    joinGroup(group, job);
    addJob(job);
  }
  show(group);
  pump();
  leavePrompt();
}

/** Draw pictures that were deleted to be drawn again, and show them side by side. */
export function drawAll(wanted) {
  if (!wanted.length) return;
  const group = newGroup(wanted[0]);
  for (const one of wanted) {
    const job = { state: 'queued', wanted: one };
    joinGroup(group, job);
    addJob(job);
  }
  location.hash = '';
  show(group);
  pump();
}

const newSeed = () => String(Math.floor(Math.random() * 1e9));

// --- the form

/** Return what the form asks for, or nothing if it is incomplete, which it then says. */
function wantedOrComplain() {
  const wanted = readForm();
  $('prompt').setCustomValidity(wanted.prompt ? '' : t('prompt.needed'));
  if (!$('draw-form').reportValidity()) return null;
  kept.set('form', hashOf(wanted));
  return wanted;
}

export function submitForm(event) {
  event?.preventDefault();
  const wanted = wantedOrComplain();
  if (!wanted) return;
  draw(wanted);
  leavePrompt();
}

/** Leave the field, so that N is a key again and a telephone's keyboard goes. */
function leavePrompt() {
  if (view.state === 'key') return;
  if (document.activeElement === $('prompt')) focusStage();
  reveal();
}

/** Draw the same with another seed, which goes when the prompt changes. */
export function drawAnother(event) {
  if (event?.detail > 1) return;
  $('seed').value = newSeed();
  kept.set('another', $('seed').value);
  submitForm();
}

/** Return to the default seed if *Another* chose the one that is there. */
export function dropSeed() {
  if ($('seed').value !== kept.get('another')) return;
  $('seed').value = '42';
  kept.set('another', null);
}

// --- stopping, keys, reloads

/** Stop waiting for what the stage shows. */
export function stop() {
  const left = (view.jobs ?? [view]).filter(({ state }) => ['queued', 'waiting'].includes(state));
  for (const job of left) {
    job.run?.abort();
    change(job, { state: 'stopped', isUnsent: job.state === 'queued' });
  }
  if (left.length) say(t('stopped'), true);
  pump();
}

export function stopAll() {
  for (const job of jobs.filter(isUnfinished)) {
    job.run?.abort();
    change(job, { state: 'stopped' });
  }
}

/** Keep the key, and draw what waits for it. */
export function saveKey(event) {
  event.preventDefault();
  keepNewKey();
  const waiting = jobs.filter(({ state }) => state === 'key');
  for (const job of waiting) change(job, { state: 'queued' });
  if (waiting.length) show(waiting.at(-1).group ?? waiting.at(-1));
  else if (!keepKey()) lookUp();
  pump();
  say(t('key.saved'));
}

/** Go on with what was not finished when the page was left; return whether there was any. */
export function restoreQueue() {
  const left = keptJobs();
  for (const job of left) addJob(job);
  if (left.length) show(left.at(-1).group ?? left.at(-1));
  pump();
  return Boolean(left.length);
}

/** Ask again for what a lost connection cut: a telephone cuts it whenever it is put away. */
function resume() {
  if (document.hidden) return;
  for (const job of jobs.filter(isCut)) change(job, { state: 'queued' });
  pump();
}
addEventListener('online', resume);
document.addEventListener('visibilitychange', resume);

/** Show the form's picture if it is in the cache: a link by itself must never spend money. */
export async function lookUp() {
  if (!kept.get('key')) { show({ state: 'key' }); return; }
  show({ state: 'empty' });
  const wanted = readForm();
  if (!wanted.prompt) return;
  try {
    if (await isCached(wanted) && view.state === 'empty') draw(wanted, true);
  } catch (error) {
    if (error.status === 401) askForKey(error.message);
  }
}

onChange((job) => {
  const isShown = job.state !== 'removed' && (view === job || (job.group && view === job.group));
  // One that needs a key asks for it in its place; several are asked once.
  if (isShown) show(job.state === 'key' ? job : view);
  if (isShown && job.state === 'key') $('key').focus();
  if (job.state === 'done') {
    if (view === job && !job.isHit) reveal();
    say(view === job ? $('how').textContent : t('queue.done', job.wanted), true);
  }
});
