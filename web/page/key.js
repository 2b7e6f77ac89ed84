// The access key: asking for it, saving it, and what it may still draw today.
import { offerModels } from './form.js';
import { jobs } from './jobs.js';
import { kept } from './kept.js';
import { askJson, withKey } from './server.js';
import { show, view } from './stage.js';
import { $, onLanguage, t } from './words.js';

let allowance = null; // the key's drawings today and its limit, as the service says
let covered = null; // what the stage showed before the key was to be changed

/** Ask for the key; `wrong` says why the last one was not accepted. */
export function askForKey(wrong = '') {
  if (wrong) refuseKey();
  show({ state: 'key', wrong });
  $('key').focus();
}

export function refuseKey() {
  kept.set('key', null);
  allowance = null;
  fillKeyLine();
}

export function changeKey() {
  if (view.state !== 'key') covered = view;
  askForKey();
}

/** Show again what was shown before; return whether there was anything. */
export function keepKey() {
  const isCovered = Boolean(covered);
  if (isCovered) show(covered);
  covered = null;
  return isCovered;
}

export function saveKey() {
  kept.set('key', $('key').value.trim());
  $('key').value = '';
  allowance = null;
  fillKeyLine();
  loadModels();
  countDrawings();
}

const isQueued = ({ state }) => state === 'queued';

/** Return how many drawings are left to the key, as far as it has a limit. */
export function drawingsLeft() {
  const { per_day: limit, drawings } = allowance ?? {};
  return limit ? Math.max(0, limit - drawings - jobs.filter(isQueued).length) : Infinity;
}

export const variantsLeft = () => Math.min(4, drawingsLeft());

/** Say that there is a key, and, before anything is drawn with it, how much it still may draw. */
export function fillKeyLine() {
  const left = drawingsLeft();
  $('key-line').hidden = !kept.get('key');
  $('key-state').textContent = left < Infinity ? t('key.limited', { left, limit: allowance.per_day }) : t('key.saved');
  $('variants').textContent = t('variants', { n: variantsLeft() });
  $('variants').hidden = variantsLeft() < 2;
}
onLanguage(fillKeyLine);

/** Ask how many drawings are left to the key. */
export async function countDrawings() {
  const key = kept.get('key');
  if (!key) return;
  const found = await askJson('status', { headers: withKey() }).catch(() => ({}));
  if (kept.get('key') !== key) return;
  allowance = found.key ?? null;
  fillKeyLine();
}

export async function loadModels() {
  const key = kept.get('key');
  if (!key) return;
  try {
    const { data } = await askJson('v1/models', { headers: withKey() });
    offerModels(data.map((model) => model.id));
  } catch (error) {
    // By now there may be another key, which is right; and a drawing reports a wrong one itself.
    const isReported = view.state === 'waiting' || kept.get('key') !== key;
    if (error.status === 401 && !isReported) askForKey(t('key.wrong'));
  }
}
